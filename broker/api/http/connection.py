"""What a handler can learn about the connection of its request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from starlette.types import Scope

EXTENSION: Final = "broker.connection"
"""Name of the ASGI extension; absent where an application is called without a server of ours."""

WHOLE_RESPONSE: Final = "broker.whole_response"
"""Name of the ASGI extension of servers that take the whole body of a response as `body` of `http.response.start`."""

CONFIRM_SECONDS: Final = 2.0
"""A client that received all and read only a part resets its connection within this time."""
UNSENT_POLL_SECONDS: Final = 0.25


class ClientConnection:
    """One connection of a client."""

    def __init__(self, unsent_bytes: Callable[[], int] = lambda: 0) -> None:
        """unsent_bytes: returns how many of the sent bytes the client's side has not acknowledged."""
        self.is_lost = False
        self._unsent_bytes = unsent_bytes
        self._is_cut_off = False
        self._lost: asyncio.Event | None = None
        """Made for the first that waits: an event takes a kibibyte."""
        self._watchers: list[Callable[[], None]] = []

    def cut_off_unsent(self) -> None:
        """Note that the connection ends now, and that the client does not get what is unsent."""
        self._is_cut_off = self._is_cut_off or self._unsent_bytes() > 0

    def lose(self, error: Exception | None) -> None:
        """error: the client reset the connection, which means that it had not read all."""
        self.is_lost = True
        self._is_cut_off = self._is_cut_off or error is not None
        if self._lost is not None:
            self._lost.set()
        for on_loss in self._watchers:
            on_loss()

    async def wait_received(self) -> bool:
        """Wait until the client has received all that was sent; return False if the connection was cut off before."""
        while not self.is_lost and self._unsent_bytes():
            await self._wait_loss(UNSENT_POLL_SECONDS)
        await self._wait_loss(CONFIRM_SECONDS)
        return not self._is_cut_off

    async def _wait_loss(self, seconds: float) -> None:
        if self.is_lost:
            return
        if self._lost is None:
            self._lost = asyncio.Event()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._lost.wait(), seconds)

    def add_watcher(self, on_loss: Callable[[], None]) -> None:
        """Call a function when the connection is lost, at once if it is."""
        self._watchers.append(on_loss)
        if self.is_lost:
            on_loss()

    def remove_watcher(self, on_loss: Callable[[], None]) -> None:
        self._watchers.remove(on_loss)


def connection_of(scope: Scope) -> ClientConnection | None:
    found: ClientConnection | None = scope.get("extensions", {}).get(EXTENSION, {}).get("connection")
    return found
