"""A small kept-alive HTTP client for single requests whose time is measured in this process, and a prober."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.results import Measured
from tests.benchmarks.support.load import http_request


@dataclass(frozen=True)
class Client:
    """One connection, one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Return status and body. Only answers with a Content-Length are read."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"\r\ncontent-length:")[2].split(b"\r\n", 1)[0]
        return int(head[9:12]), await self.reader.readexactly(int(length or 0))

    async def call(self, method: str, path: str, document: Any = None) -> Any:
        """Send a request and return the JSON of its answer."""
        status, body = await self.send(http_request(method, path, document))
        if status >= 400:
            raise ValueError(f"{method} {path}: {status}")
        return json.loads(body)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def probing(port: int, path: str, every_seconds: float) -> AsyncIterator[list[float]]:
    """Send a request again and again while the block runs; yields the list of the seconds that each took."""
    latencies: list[float] = []

    async def probe() -> None:
        async with connected(port) as client:
            request = http_request("GET", path)
            while True:
                began = time.perf_counter()
                await client.send(request)
                latencies.append(time.perf_counter() - began)
                await asyncio.sleep(every_seconds)

    probe_task = asyncio.create_task(probe())
    try:
        yield latencies
    finally:
        probe_task.cancel()
        await asyncio.gather(probe_task, return_exceptions=True)


async def wait_until(condition: Callable[[], Awaitable[object]], *, every_seconds: float, seconds: float) -> None:
    """Ask again and again until the condition is true. Raises TimeoutError after so many seconds."""
    ends_at = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > ends_at:
            raise TimeoutError(f"not within {seconds:g} s")
        await asyncio.sleep(every_seconds)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` of all are. Raises ValueError without values."""
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def milliseconds(*values: float, name: str = "") -> Measured:
    """Return the durations, in seconds, as a side of a row."""
    return Measured(name=name, unit="ms", values=tuple(value * 1000 for value in values))
