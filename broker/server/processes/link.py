"""The connection of a process to its supervisor: one JSON document per line, over a socket pair.

The process says that it serves, reports its metrics when asked, and asks for the sum of all processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from prometheus_client import CollectorRegistry

from broker.monitoring.process_sums import Report, make_report

READY: Final = "ready"
REPORT: Final = "report"
SUMS: Final = "sums"

MAX_LINE_BYTES: Final = 16 * 2**20
SUMS_SECONDS: Final = 3.0
"""Time that the supervisor has for the sums."""


def encode(kind: str, value: Any = None) -> bytes:
    """Return a message as a line."""
    return json.dumps([kind, value], separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> tuple[str, Any]:
    """Return kind and value of a message."""
    kind, value = json.loads(line)
    return kind, value


class SupervisorLink:
    """The end of the process. If the supervisor dies, the process stops as after SIGTERM."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._writer: asyncio.StreamWriter | None = None
        self._sums: asyncio.Future[Report] | None = None

    @asynccontextmanager
    async def run(self, registry: CollectorRegistry) -> AsyncIterator[None]:
        """Answer the supervisor while the block runs; then report for the last time."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket, limit=MAX_LINE_BYTES)
        reading = asyncio.create_task(self._read(reader, registry), name="supervisor-link")
        try:
            yield
        finally:
            self._send(REPORT, make_report(registry))
            with suppress(ConnectionError):
                await self._writer.drain()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._writer.close()
            self._writer = None

    def report_ready(self, summary: Sequence[Any]) -> None:
        """Tell that requests are answered. summary: to be printed once all processes are ready."""
        self._send(READY, summary)

    async def read_sums(self) -> Report | None:
        """Return the sums over all processes; None if the supervisor does not answer."""
        if self._writer is None:
            return None
        if self._sums is None:
            self._sums = asyncio.get_running_loop().create_future()
            self._send(SUMS)
        try:
            async with asyncio.timeout(SUMS_SECONDS):
                return await asyncio.shield(self._sums)
        except TimeoutError:
            self._sums = None
            return None

    def _send(self, kind: str, value: Any = None) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(kind, value))

    async def _read(self, reader: asyncio.StreamReader, registry: CollectorRegistry) -> None:
        with suppress(ConnectionError):  # it ended, and left something unread
            while line := await reader.readline():
                kind, value = decode(line)
                if kind == REPORT:
                    self._send(REPORT, make_report(registry))
                elif kind == SUMS and self._sums is not None:
                    self._sums.set_result(value)
                    self._sums = None
        os.kill(os.getpid(), signal.SIGTERM)
