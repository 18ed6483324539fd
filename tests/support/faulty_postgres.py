"""A proxy to Postgres that breaks at a chosen moment: before a commit arrives, or before its response."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

When = Literal["before", "after", "held"]
SSL_REQUEST = 80877103
READY = b"Z\x00\x00\x00\x05"


@dataclass
class Cable:
    """One connection path to Postgres. It breaks once, at the `fuse`-th moment at which something would become durable.

    when: before the message that would do it has arrived; after, with its answer lost; or held: the message never
    arrives, and the connection stays open until Postgres closes it. cut: whether it broke.
    """

    to: int
    when: When
    fuse: int
    port: int = 0
    moments: int = 0
    armed: bool = True
    cut: bool = False


@asynccontextmanager
async def cable(to: int, when: When, fuse: int, *, armed: bool = True) -> AsyncIterator[Cable]:
    """Run a proxy on a port of loopback in front of Postgres."""
    one = Cable(to=to, when=when, fuse=fuse, armed=armed)
    lines: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.ensure_future(_Line(one).run(reader, writer))
        lines.add(line)
        line.add_done_callback(lines.discard)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        one.port = server.sockets[0].getsockname()[1]
        yield one
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)


class _Line:
    """One connection through the proxy, read message by message on the client's side."""

    def __init__(self, one: Cable) -> None:
        self._cable = one
        self._in_transaction = False
        self._mute = False

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._cable.to)
        except OSError:
            writer.transport.abort()
            return
        try:
            with suppress(OSError, asyncio.IncompleteReadError, _Cut):
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._answers(there, writer))
                    both.create_task(self._questions(reader, back))
        except ExceptionGroup:
            pass  # one side hung up, or we did
        finally:
            writer.transport.abort()
            back.transport.abort()

    async def _questions(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        typed = False
        while True:
            kind = await reader.readexactly(1) if typed else b""
            head = await reader.readexactly(4)
            body = await reader.readexactly(struct.unpack("!i", head)[0] - 4)
            typed = typed or struct.unpack("!i", body[:4])[0] != SSL_REQUEST
            if self._is_moment(kind, body):
                self._cable.moments += 1
                if self._cable.armed and self._cable.moments == self._cable.fuse:
                    self._cable.cut = True
                    if self._cable.when == "before":
                        raise _Cut
                    if self._cable.when == "held":
                        await asyncio.Event().wait()
                    self._mute = True
            back.write(kind + head + body)
            await back.drain()

    def _is_moment(self, kind: bytes, body: bytes) -> bool:
        """Return whether the message makes something durable: COMMIT, or a statement outside of a transaction."""
        if kind == b"Q" and body.startswith(b"BEGIN"):
            self._in_transaction = True
        elif kind == b"Q" and body.startswith((b"COMMIT", b"ROLLBACK")):
            self._in_transaction = False
            return body.startswith(b"COMMIT")
        return kind == b"E" and not self._in_transaction

    async def _answers(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await there.read(65536):
            if self._mute:
                if READY in data:  # done, and the answer is lost
                    raise _Cut
                continue
            writer.write(data)
            await writer.drain()
        raise _Cut


class _Cut(Exception):
    """Break the connection for good."""
