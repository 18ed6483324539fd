"""The sandbox provider in a process that outlives the broker: `python -m tests.support.servers.sandbox PORT`."""

from __future__ import annotations

import asyncio
import signal
import sys

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox

UNLIMITED = Options(
    duration=1.0, callback_spacing=0.5, callback_retries=20, creates_per_window=1_000_000, credits=1_000_000_000
)
"""Limits that are never reached, and callbacks that are repeated until answered."""


async def main(port: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve_sandbox("127.0.0.1", int(port), UNLIMITED):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
