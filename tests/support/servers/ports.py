"""Ports of loopback."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

FIRST_PORT: Final = 18_000
"""Below those that the kernel gives to outgoing connections: such a port stays free while its server is restarted."""
PORTS_PER_PROCESS: Final = 2_000


def _own_ports() -> Iterator[int]:
    """Yield the ports of this test process, again and again, from a random one on."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 7
    first = FIRST_PORT + number * PORTS_PER_PROCESS
    start = random.randrange(PORTS_PER_PROCESS)
    while True:
        yield from (first + (start + step) % PORTS_PER_PROCESS for step in range(PORTS_PER_PROCESS))


_PORTS: Final = _own_ports()


def free_port() -> int:
    """Return a port that nobody listens on, and that no other test process gets."""
    for port in _PORTS:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("the ports never end")


async def answers(port: int) -> None:
    """Wait until the port accepts connections."""
    async with asyncio.timeout(10):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
