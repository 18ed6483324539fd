"""A raw asyncio HTTP client in a process of its own, for steady rates, for a number of requests, and without wrk.

`python -m tests.benchmarks.support.raw_client PORT FILE --connections N --seconds S --rate R --count N` prints one JSON
document. FILE: as `load.lua` reads it.

At a steady rate a request is due at its moment, whether or not the one before has been answered, and its time counts
from that moment: waiting for the others is included. Only the timer's own delay is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import cast

import uvloop


def read_requests(file: Path) -> list[bytes]:
    data, at, requests = file.read_bytes(), 0, []
    while at < len(data):
        end = data.index(b"\n", at)
        length = int(data[at:end])
        requests.append(data[end + 1 : end + 1 + length])
        at = end + 1 + length
    return requests


@dataclass
class Run:
    """What all connections share. interval: seconds between two requests of one connection; 0: as fast as answered."""

    requests: Iterator[bytes]
    ends_at: float
    left: int
    interval: float
    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    size: int = 0
    last_end: float = 0.0


class Connection(asyncio.Protocol):
    """One connection with one request at a time."""

    transport: asyncio.Transport

    def __init__(self, run: Run, due: float, done: asyncio.Future[None]) -> None:
        self.run, self.due, self.done = run, due, done
        self._began = 0.0
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has another base class
        self._schedule()

    def _schedule(self) -> None:
        now = time.perf_counter()
        if now >= self.run.ends_at or self.run.left <= 0:
            self.transport.close()
        elif self.run.interval and self.due > now:
            asyncio.get_running_loop().call_later(self.due - now, self._send, None)
        else:
            self._send(self.due if self.run.interval else now)

    def _send(self, began: float | None) -> None:
        """Send the next request. began: when it was due, if the connection was busy then."""
        run = self.run
        if run.left <= 0:
            self.transport.close()
            return
        run.left -= 1
        self.due += run.interval
        self._began = time.perf_counter() if began is None else began
        self.transport.write(next(run.requests))

    def data_received(self, data: bytes) -> None:
        run = self.run
        run.size += len(data)
        self._buffer = self._buffer + data if self._buffer else data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        start = head.find(b"\r\ncontent-length:")
        length = 0 if start < 0 else int(head[start + 17 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < head_end + 4 + length:
            return
        run.last_end = time.perf_counter()
        run.latencies.append(run.last_end - self._began)
        run.errors += self._buffer[9:10] not in b"23"
        self._buffer = b""
        self._schedule()

    def connection_lost(self, exc: Exception | None) -> None:
        self.run.errors += exc is not None
        if not self.done.done():
            self.done.set_result(None)


async def run_load(port: int, run: Run, connections: int) -> None:
    """Run until its end, or until SIGTERM."""
    loop, began = asyncio.get_running_loop(), time.perf_counter()

    def stop() -> None:
        run.left = 0

    loop.add_signal_handler(signal.SIGTERM, stop)
    dones = []
    for number in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        due = began + run.interval * number / connections
        await loop.create_connection(partial(Connection, run, due, done), "127.0.0.1", port)
        dones.append(done)
    await asyncio.gather(*dones)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.support.raw_client")
    parser.add_argument("port", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=0.0, help="of all connections together; 0: as fast as answered")
    parser.add_argument("--count", type=int, default=2**62, help="stop after so many")
    parser.add_argument("--offset", type=int, default=0, help="of the first request in the file")
    chosen = parser.parse_args()
    requests = read_requests(chosen.file)
    began = time.perf_counter()
    run = Run(
        requests=islice(cycle(requests), chosen.offset % len(requests), None),
        ends_at=began + chosen.seconds,
        left=chosen.count,
        interval=chosen.connections / chosen.rate if chosen.rate else 0.0,
    )
    uvloop.run(run_load(chosen.port, run, chosen.connections))
    values = sorted(run.latencies) or [float("nan")]
    result = {
        "count": len(run.latencies),
        "seconds": max(run.last_end - began, 1e-9),
        "p50": values[len(values) // 2],
        "p99": values[min(len(values) - 1, len(values) * 99 // 100)],
        "max": values[-1],
        "errors": run.errors,
        "bytes": run.size,
    }
    sys.stdout.write(f"{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
