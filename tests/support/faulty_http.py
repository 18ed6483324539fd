"""The network outside: a server that sends given bytes, and a network that only records."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any

import httpcore

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
class Network(httpcore.AsyncNetworkBackend):
    """A network without connections: it records what was dialed, and answers from a list of prepared bytes.

    replies: the whole answer of each connection in turn; without any the connection is refused.
    """

    replies: list[bytes] = field(default_factory=list)
    dialled: list[tuple[str, int]] = field(default_factory=list)
    tls_names: list[str | None] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    open: int = 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        self.dialled.append((host, port))
        if not self.replies:
            raise httpcore.ConnectError("refused")
        self.sent.append(b"")
        self.open += 1
        return _Line(self, self.replies.pop(0))


class _Line(httpcore.AsyncNetworkStream):
    """A connection of `Network`: one reply, then the end."""

    def __init__(self, network: Network, reply: bytes) -> None:
        self._network = network
        self._reply = reply
        self._open = True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        reply, self._reply = self._reply[:max_bytes], self._reply[max_bytes:]
        return reply

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._network.sent[-1] += buffer

    async def aclose(self) -> None:
        self._network.open -= self._open
        self._open = False

    async def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        self._network.tls_names.append(server_hostname)
        return self

    def get_extra_info(self, info: str) -> Any:
        return None


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
