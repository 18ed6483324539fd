"""Cost of a client that waits: `python -m tests.benchmarks.engines.waiters [CLIENTS]`.

The clients wait for a task each, by a long poll, an event stream or the held answer of a synchronous dialect. The
broker is a process of its own: its memory and its processor time while all wait, and the time from the commit that ends
a task to the last byte of its client's response.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anyio import to_thread

from storage.errors import Stale
from storage.states import TaskState
from tests.benchmarks.engines.measuring import Child, Side, cut, ms, say, table
from tests.benchmarks.support.client import connected
from tests.support.api import ApiBroker, open_api

WAYS: Final = ("long poll", "event stream", "held answer")
IDLE_SECONDS: Final = 3.0
ENDS_PER_SECOND: Final = 500
STARTS_PER_SECOND: Final = 400
PAGE_KIB: Final = os.sysconf("SC_PAGE_SIZE") / 1024
HEAD: Final = ("clients", "way", "KiB each", "CPU while waiting, %", "end → response p50, ms", "p99, ms", "last, ms")


def memory_kib() -> float:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * PAGE_KIB


async def serve(side: Side, folder: str, clients: int) -> dict[str, Any]:
    """Run the broker; when all clients wait, end their tasks. Return the moment of each commit, by task."""
    settings: dict[str, Any] = {"rate_per_minute": 1_000_000, "hold": 60}
    async with open_api(Path(folder), sockets=True, **settings) as broker:
        await to_thread.run_sync(Path(folder, "port").write_text, str(broker.port), "ascii")
        side.ready.set()
        await _waiters(broker, 1)
        before = memory_kib()  # that of the tasks themselves is not what is measured
        await side.wait_for_go()
        await _waiters(broker, clients)
        used, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(IDLE_SECONDS)
        cpu = (time.process_time() - used) / (time.perf_counter() - began)
        waiting = memory_kib() - before
        commits = await end_tasks(broker)
        await side.wait_for_stop()
        return {"kib": waiting / clients, "cpu": cpu, "commits": commits}


async def _waiters(broker: ApiBroker, count: int) -> None:
    while broker.waiters < count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def end_tasks(broker: ApiBroker) -> dict[str, float]:
    rows = await broker.services.database.fetch("SELECT id FROM tasks")
    commits = {}
    for row in rows:
        commits[row["id"]] = await end_task(broker, row["id"])
        await asyncio.sleep(1 / ENDS_PER_SECOND)
    return commits


async def end_task(broker: ApiBroker, task_id: str) -> float:
    """End a task, also while the worker has it; return the moment of the commit."""
    while True:
        task = await broker.services.tables.tasks.get(task_id)
        assert task is not None
        with suppress(Stale):
            await broker.change_task(task, state=TaskState.FAILED, error_code="no_image", ended_at=time.time())
            return time.time()


async def wait_for_task(port: int, request: bytes) -> tuple[bytes, float]:
    """Send a request; return the response and the moment of its last byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    response = await reader.read()
    writer.close()
    return response, time.time()


def http_request(method: str, path: str, document: Mapping[str, Any] | None = None) -> bytes:
    body = json.dumps(document).encode() if document else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def requests_of(way: str, port: int, clients: int) -> list[bytes]:
    orders = [{"prompt": f"a red fox, number {number}"} for number in range(clients)]
    if way == "held answer":
        return [http_request("POST", "/generate", order) for order in orders]
    async with connected(port) as client:
        ids = [(await client.call("POST", "/api/generate/image", order))["taskId"] for order in orders]
    suffix = "?wait=30" if way == "long poll" else "/events"
    return [http_request("GET", f"/api/task/{task_id}{suffix}") for task_id in ids]


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Cost of clients that wait. cpu: share of one processor while they do. delays: seconds from commit to response."""

    kib_each: float
    cpu: float
    delays: list[float]


async def measure(way: str, clients: int) -> Waiting:
    with tempfile.TemporaryDirectory() as folder:
        child = Child(serve, folder, clients)
        await child.ready()
        port = int(await to_thread.run_sync(Path(folder, "port").read_text, "ascii"))
        requests = await requests_of(way, port, clients)
        waiting = []
        for request in requests:  # not all at once: the peak of the orders is not what is measured
            waiting.append(asyncio.create_task(wait_for_task(port, request)))
            await asyncio.sleep(1 / STARTS_PER_SECOND)
        child.go()
        answers = await asyncio.gather(*waiting)
        result = await child.result()
    delays = [moment - result["commits"][task_of(response)] for response, moment in answers]
    return Waiting(kib_each=result["kib"], cpu=result["cpu"], delays=delays)


async def row(way: str, clients: int) -> list[str]:
    found = await measure(way, clients)
    return [
        f"{clients:,}",
        way,
        f"{found.kib_each:.1f}",
        f"{found.cpu * 100:.1f}",
        *(ms(cut(found.delays, percent)) for percent in (50, 99)),
        ms(max(found.delays)),
    ]


def task_of(response: bytes) -> str:
    start = response.index(b"task_")
    return response[start : response.index(b'"', start)].decode()


async def main(clients: int) -> None:
    say(table(HEAD, [await row(way, clients) for way in WAYS]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engines.waiters")
    parser.add_argument("clients", type=int, nargs="?", default=1000)
    asyncio.run(main(parser.parse_args().clients))
