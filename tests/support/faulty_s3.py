"""A proxy in front of an S3 server that loses, delays and refuses chosen requests and passes on the others."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from tests.support.faulty_http import Script, Server, Visit, answers, head, sends, serve

Mend = Callable[[bytes], bytes]
ALWAYS = 10**9


def error(status: str, code: str, more: str = "") -> Script:
    """Return an error response in the format of S3."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>No.</Message>{more}</Error>'
    answer = answers(status, body.encode(), "Content-Type: application/xml", "Connection: close")

    async def script(visit: Visit) -> None:
        await _body(visit)
        await answer(visit)

    return script


def holds(size: int, modified: str) -> Script:
    """Return the response to HEAD for an object of this size and date."""
    return sends(
        head("200 OK", f"Content-Length: {size}", f"Last-Modified: {modified}", 'ETag: "x"', "Connection: close")
    )


@dataclass
class _Fault:
    wanted: re.Pattern[str]
    script: Script
    times: int


@dataclass
class Network:
    """Proxy between the store and `upstream`, with its faults.

    seen: `METHOD target` of every request. hanging: set when a request was left without an answer; left: when its
    caller then went away.
    """

    upstream: int
    server: Server = field(default_factory=Server)
    seen: list[str] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    _faults: list[_Fault] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.server.host}"

    def count(self, wanted: str) -> int:
        return sum(re.search(wanted, line) is not None for line in self.seen)

    def when(self, wanted: str, script: Script, times: int = ALWAYS) -> None:
        """Apply a fault to the next `times` requests whose `METHOD target` matches; the latest rule counts."""
        self._faults.insert(0, _Fault(re.compile(wanted), script, times))

    def heal(self) -> None:
        self._faults.clear()

    async def visit(self, visit: Visit) -> None:
        line = visit.head.split(b" HTTP/", 1)[0].decode()
        self.seen.append(line)
        for fault in self._faults:
            if fault.times > 0 and fault.wanted.search(line):
                fault.times -= 1
                await fault.script(visit)
                return
        await self.forward(visit)

    # -- what can be done with a request

    async def forward(self, visit: Visit, mend: Mend = lambda body: body) -> None:
        top, body = await self._answer(visit)
        await visit.send(top, mend(body))

    async def hang(self, visit: Visit) -> None:
        """Read everything and never answer; ends with the client."""
        self.hanging.set()
        try:
            await _drain(visit)
        finally:
            self.left.set()

    async def half_and_hang(self, visit: Visit) -> None:
        top, body = await self._answer(visit)
        await visit.send(top, body[: len(body) // 2])
        await self.hang(visit)

    async def cut_answer(self, visit: Visit) -> None:
        top, body = await self._answer(visit)
        await visit.send(top, body[: len(body) // 2])
        # not a reset: that would throw away what is on its way

    async def cut_request(self, visit: Visit) -> None:
        await visit.reader.readexactly(_length(visit.head) // 2)
        visit.reset()

    async def _answer(self, visit: Visit) -> tuple[bytes, bytes]:
        """Return head and body of the server's response; a connection serves one request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            writer.write(visit.head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            writer.write(await _body(visit))
            await writer.drain()
            top = await reader.readuntil(b"\r\n\r\n")
            return top.replace(b"Connection: keep-alive", b"Connection: close"), await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def network(upstream: int) -> AsyncGenerator[Network]:
    between = Network(upstream)
    async with serve(partial(Network.visit, between)) as server:
        between.server = server
        yield between


async def _body(visit: Visit) -> bytes:
    return await visit.reader.readexactly(_length(visit.head))


async def _drain(visit: Visit) -> None:
    while await visit.reader.read(65536):
        pass


def _length(head: bytes) -> int:
    match = re.search(rb"\r\ncontent-length: *([0-9]+)", head, re.IGNORECASE)
    return int(match[1]) if match else 0
