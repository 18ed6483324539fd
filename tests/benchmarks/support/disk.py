"""The reference F: how often per second this disk makes four KiB durable, one after the other.

`python -m tests.benchmarks.support.disk FOLDER SECONDS` prints it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.support.processes import environment, run_python


async def syncs_per_second(folder: Path, seconds: float, *, preload: Path | None = None) -> float:
    """Measure F in a process of its own. preload: of the slow disk."""
    env = environment(**({"LD_PRELOAD": str(preload)} if preload else {}))
    return float(await run_python("tests.benchmarks.support.disk", folder, seconds, env=env))


def has_slow_disk() -> bool:
    """Return whether a slow disk can be had: it takes a C compiler."""
    return shutil.which("cc") is not None


def slow_fsync(cache: Path) -> Path:
    """Return the library that makes each fsync five milliseconds slower; compiled once."""
    library = cache / "slow_fsync.so"
    if not library.exists():
        source = Path(__file__).with_name("slow_fsync.c")
        draft = library.with_suffix(".draft")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(draft), str(source), "-ldl"], check=True)
        draft.rename(library)
    return library


def main(folder: str, seconds: str) -> None:
    file = os.open(Path(folder) / "fdatasync", os.O_WRONLY | os.O_CREAT, 0o600)
    page, count, began = os.urandom(4096), 0, time.perf_counter()
    os.pwrite(file, bytes(4096 * 64), 0)
    while time.perf_counter() - began < float(seconds):
        os.pwrite(file, page, 4096 * (count % 64))
        os.fdatasync(file)
        count += 1
    sys.stdout.write(f"{count / (time.perf_counter() - began)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
