"""Durable tasks that do nothing, with huey on SQLite, fsynced: prints how many per second from enqueue to done.

Runs with the interpreter of the peers, which has huey: `python huey_noop.py FILE COUNT`.
"""

from __future__ import annotations

import sys
import threading
import time
from importlib import import_module
from typing import Any

WORKERS = 4
done = threading.Semaphore(0)


def main(file: str, count: int) -> None:
    huey: Any = import_module("huey").SqliteHuey(filename=file, fsync=True)

    @huey.task()  # type: ignore[untyped-decorator]
    def noop() -> None:
        done.release()

    consumer = huey.create_consumer(workers=WORKERS, periodic=False, initial_delay=0.001, max_delay=0.01)
    consumer.start()
    began = time.perf_counter()
    enqueuing = threading.Thread(target=lambda: [noop() for _ in range(count)])
    enqueuing.start()
    for _ in range(count):
        done.acquire()
    seconds = time.perf_counter() - began
    consumer.stop()
    sys.stdout.write(f"{count / seconds}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
