"""Ports of loopback."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def answers(port: int) -> None:
    """Wait until the port accepts connections."""
    async with asyncio.timeout(10):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
