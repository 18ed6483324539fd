"""Waiting for something while the client stays connected."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal

from starlette.requests import Request

Ending = Literal["done", "time", "left"]
"""Why a wait ended: what was waited for is there, the time is over, or the client has left."""


async def wait_while_connected(request: Request, waiting: Coroutine[Any, Any, None], seconds: float) -> Ending:
    """Wait for `seconds` at most, and not longer than the client stays connected. Raises what `waiting` raises."""
    waiter, disconnect = asyncio.ensure_future(waiting), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({waiter, disconnect}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if waiter.done():
            waiter.result()
            return "done"
        return "left" if disconnect.done() else "time"
    finally:
        waiter.cancel()
        disconnect.cancel()
        await asyncio.gather(waiter, disconnect, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
