"""Tunnels between the internet and a broker on a desktop, and the agents that report them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.support.faulty_http import Server, Visit, answers, serve


@dataclass(kw_only=True)
class Tunnel:
    """A public URL whose requests are forwarded to `target`, a port of this machine.

    edge: what the far end answers by itself instead, as it does for a tunnel without an agent.
    """

    url: str = ""
    target: int
    edge: bytes | None = None
    requests: list[bytes] = field(default_factory=list)
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def kill(self) -> None:
        """Stop listening."""
        await self.closing.aclose()

    async def forward(self, visit: Visit) -> None:
        self.requests.append(visit.head)
        if self.edge is not None:
            await visit.send(self.edge)
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            await answers("502 Bad Gateway")(visit)
            return
        first, rest = visit.head.split(b"\r\n", 1)
        back.write(first + b"\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n" + rest)
        try:
            await asyncio.gather(_pass_on(visit.reader, back), self._return(there, visit))
        finally:
            back.close()

    async def _return(self, there: asyncio.StreamReader, visit: Visit) -> None:
        while data := await there.read(65536):
            await visit.send(data)
        visit.reader.feed_eof()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def tunnelling(target: int) -> AsyncIterator[Tunnel]:
    tunnel = Tunnel(target=target)
    server = await tunnel.closing.enter_async_context(serve(tunnel.forward))
    tunnel.url = server.url("").rstrip("/")
    try:
        yield tunnel
    finally:
        await tunnel.kill()


@dataclass(kw_only=True)
class Agent:
    """ngrok's agent and cloudflared's metrics in one; the reported tunnels can be changed at any time.

    old: ngrok before its version 3 of endpoints. silent: answers nothing but 404.
    """

    url: str = ""
    old: bool = False
    silent: bool = False
    endpoints: list[tuple[str, Any]] = field(default_factory=list)
    """Public URLs and where they lead."""
    quick: str = ""

    def names(self, *urls: str, port: Any) -> None:
        self.endpoints = [(url, port) for url in urls]

    async def respond(self, visit: Visit) -> None:
        document = None if self.silent else self._document(visit.path)
        status, body = ("404 Not Found", b"") if document is None else ("200 OK", json.dumps(document).encode())
        await answers(status, body, "Content-Type: application/json")(visit)

    def _document(self, path: str) -> Any:
        if path == "/api/endpoints" and not self.old:
            return {"endpoints": [{"url": url, "upstream": {"url": _local(to)}} for url, to in self.endpoints]}
        if path == "/api/tunnels" and self.old:
            return {"tunnels": [{"public_url": url, "config": {"addr": _local(to)}} for url, to in self.endpoints]}
        if path == "/quicktunnel" and self.quick:
            return {"hostname": self.quick.removeprefix("http://")}
        return None


def _local(port: Any) -> str:
    return f"http://localhost:{port}"


@asynccontextmanager
async def an_agent(**how: Any) -> AsyncIterator[Agent]:
    agent = Agent(**how)
    async with serve(agent.respond) as server:
        agent.url = _url(server)
        yield agent


def _url(server: Server) -> str:
    return f"http://{server.host}"
