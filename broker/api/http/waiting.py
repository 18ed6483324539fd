"""Waiting for something while the client stays connected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import anyio
from starlette.requests import Request

from broker.api.http.connection import connection_of

Ending = Literal["done", "time", "left"]
"""Why a wait ended: what was waited for is there, the time is over, or the client has left."""


async def wait_while_connected(request: Request, waiting: Coroutine[Any, Any, None], seconds: float) -> Ending:
    """Wait for `seconds` at most, and not longer than the client stays connected. Raises what `waiting` raises.

    It costs no task of its own where the server tells the loss of a connection: thousands may wait.
    """
    has_left = False
    with anyio.move_on_after(seconds) as scope:

        def leave() -> None:
            nonlocal has_left
            has_left = True
            scope.cancel()

        with _watch(request, leave):
            await waiting
            return "done"
    return "left" if has_left else "time"


@contextmanager
def _watch(request: Request, on_loss: Callable[[], None]) -> Iterator[None]:
    """Call a function when the client disconnects."""
    if connection := connection_of(request.scope):
        with connection.watch(on_loss):
            yield
        return
    reading = asyncio.create_task(_read_disconnect(request, on_loss))
    try:
        yield
    finally:
        reading.cancel()


async def _read_disconnect(request: Request, on_loss: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    on_loss()
