"""A TCP proxy that cuts its first connections off in the middle of the answer, and relays all others."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def cutting_proxy(port: int, *cuts: int) -> AsyncIterator[int]:
    """Run the proxy before a local port, and yield its own.

    cuts: bytes of the answer that get through on each of the first connections.
    """
    left, connections = list(cuts), set[asyncio.Task[None]]()

    async def relay_both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = left.pop(0) if left else None
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", port)
        requests = asyncio.create_task(_relay(reader, upstream, None))
        try:
            await _relay(upstream_reader, writer, cut)
        finally:
            requests.cancel()
            await asyncio.gather(requests, return_exceptions=True)
            for one in (writer, upstream):
                _reset(one)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(relay_both(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
    """Copy what is read, all or the first bytes of it."""
    with suppress(ConnectionError):
        while (most is None or most > 0) and (chunk := await reader.read(2**16 if most is None else most)):
            writer.write(chunk)
            await writer.drain()
            most = None if most is None else most - len(chunk)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
