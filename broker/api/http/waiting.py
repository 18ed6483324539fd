"""Waiting for something while the client stays connected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from starlette.requests import Request

from broker.api.http.connection import connection_of

Ending = Literal["done", "time", "left"]
"""Why a wait ended: what was waited for is there, the time is over, or the client has left."""


async def wait_while_connected(request: Request, waiting: Coroutine[Any, Any, None], seconds: float | None) -> Ending:
    """Wait for `seconds` at most, and not longer than the client stays connected. Raises what `waiting` raises.

    seconds: None for no limit.
    It costs no task of its own where the server tells the loss of a connection: thousands may wait.
    """
    has_left = False
    timeout = asyncio.timeout(seconds)

    def leave() -> None:
        nonlocal has_left
        has_left = True
        if not timeout.expired():
            timeout.reschedule(0.0)

    try:
        async with timeout:
            if connection := connection_of(request.scope):
                connection.add_watcher(leave)
                try:
                    await waiting
                finally:
                    connection.remove_watcher(leave)
            else:
                reading = asyncio.create_task(_read_disconnect(request, leave))
                try:
                    await waiting
                finally:
                    reading.cancel()
    except TimeoutError:
        if not timeout.expired():  # one of what was waited for
            raise
        return "left" if has_left else "time"
    return "done"


async def _read_disconnect(request: Request, on_loss: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    on_loss()
