"""A provider's file server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Pictures:
    """A file server. host: for `BROKER_DOWNLOAD_ALLOW`. fetched: number of downloads."""

    host: str = ""
    fetched: int = 0
    _kept: dict[str, bytes] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> str:
        """Store a file and return its URL."""
        self._kept[f"/{name}"] = data
        return f"http://{self.host}/{name}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        data = self._kept[request.split(b" ")[1].decode()]
        self.fetched += 1
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def serving_pictures() -> AsyncIterator[Pictures]:
    pictures = Pictures()
    server = await asyncio.start_server(pictures.answer, "127.0.0.1", 0)
    async with server:
        pictures.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield pictures
