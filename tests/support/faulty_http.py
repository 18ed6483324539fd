"""The network outside: a server that sends given bytes, and a network that only records."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from tests.support.certificates import tls_ends

PUBLIC = "93.184.216.34"

Script = Callable[["Visit"], Awaitable[None]]
"""Handles one connection whose request head has arrived; the connection is closed afterwards."""


@dataclass
class Visit:
    """One connection with its first request."""

    head: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def path(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def read_body(self) -> bytes:
        headers = self.head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in headers if line.startswith(b"content-length:"))
        return await self.reader.readexactly(length)

    def reset(self) -> None:
        """Close with RST, like a crashed server."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Server:
    """A running server: the number of its connections, and the request heads it received."""

    port: int = 0
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client disconnected before it was served."""
    called: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request head has arrived."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str = "/") -> str:
        return f"http://{self.host}{path}"


@asynccontextmanager
async def serve(script: Script | Mapping[str, Script], *, port: int = 0) -> AsyncGenerator[Server]:
    """Run a server on a loopback port, by default a free one; a mapping selects the script by path."""
    server, tasks = Server(), set[asyncio.Task[None]]()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            server.heads.append(head)
            server.called.set()
            opened = Visit(head, reader, writer)
            await (script if callable(script) else script[opened.path])(opened)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            server.left.set()
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(visit(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", port)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listener.wait_closed()


def head(status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1")


def sends(*parts: bytes) -> Script:
    """Return a script that sends the bytes, then closes."""

    async def script(visit: Visit) -> None:
        await visit.send(*parts)

    return script


def answers(status: str = "200 OK", body: bytes = b"", *headers: str) -> Script:
    return sends(head(status, f"Content-Length: {len(body)}", *headers), body)


async def silence(visit: Visit) -> None:
    """Read the request and never answer; ends when the client disconnects."""
    await visit.reader.readuntil(b"never")


async def rst(visit: Visit) -> None:
    visit.reset()


@dataclass
class Network:
    """A network of socket pairs, to dial with: it records what was dialed, and answers with prepared bytes.

    replies: the whole answer of each connection in turn; without any the connection is refused. Port 443 speaks TLS,
    with a certificate that `tls` trusts.
    """

    replies: list[bytes] = field(default_factory=list)
    dialled: list[tuple[str, int]] = field(default_factory=list)
    tls_names: list[str | None] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    _accepting: list[asyncio.Task[Any]] = field(default_factory=list)
    _ends: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def tls(self) -> ssl.SSLContext:
        return tls_ends().client

    async def __call__(self, address: str, port: int) -> socket.socket:
        self.dialled.append((address, port))
        if not self.replies:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        self.sent.append(b"")
        self._ends.append(asyncio.get_running_loop().create_future())
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        line = _Line(self, self.replies.pop(0), self._ends[-1])
        context = self._server_context() if port == 443 else None
        accepting = asyncio.get_running_loop().connect_accepted_socket(lambda: line, theirs, ssl=context)
        self._accepting.append(asyncio.ensure_future(accepting))
        return ours

    async def all_closed(self) -> None:
        """Wait until the client has closed every connection."""
        async with asyncio.timeout(5):
            await asyncio.gather(*self._ends)

    def _server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls_ends().server_file)
        context.sni_callback = lambda line, name, context: self.tls_names.append(name)
        return context


class _Line(asyncio.Protocol):
    """The far end of a connection of `Network`: one reply, then the end."""

    def __init__(self, network: Network, reply: bytes, end: asyncio.Future[None]) -> None:
        self._network = network
        self._reply = reply
        self._end = end
        self._number = len(network.sent) - 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._network.sent[self._number] += data
        if b"\r\n\r\n" in self._network.sent[self._number]:
            self._transport.write(self._reply)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._end.set_result(None)


@dataclass
class Names:
    """A name server: records queries and returns the given answers in turn, repeating the last."""

    answers: list[list[str]] = field(default_factory=lambda: [[PUBLIC]])
    resolved: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
