"""A TCP load balancer in front of several brokers where nginx is not installed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import cycle


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.write_eof()


@asynccontextmanager
async def balancing(port: int, ports: Sequence[int]) -> AsyncIterator[str]:
    """Run a balancer over `ports`, in turn, that skips a closed one; yield its base URL."""
    turns = cycle(range(len(ports)))

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        first = next(turns)
        for offset in range(len(ports)):
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", ports[(first + offset) % len(ports)])
        raise ConnectionRefusedError

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, back = await connect()
            try:
                await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
            finally:
                back.close()
        writer.close()

    lines: set[asyncio.Task[None]] = set()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.ensure_future(serve(reader, writer))
        lines.add(line)
        line.add_done_callback(lines.discard)

    async with await asyncio.start_server(take, "127.0.0.1", port, backlog=1024) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)
