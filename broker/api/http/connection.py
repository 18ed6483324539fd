"""What a handler can learn about the connection of its request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from starlette.types import Scope

EXTENSION: Final = "broker.connection"
"""Name of the ASGI extension; absent where an application is called without a server of ours."""


class ClientConnection:
    """One connection of a client."""

    def __init__(self) -> None:
        self.is_lost = False
        self._watchers: list[Callable[[], None]] = []
        self.reset = asyncio.Event()
        """Set when the connection ended with an error: the client left before it had read all."""

    def lose(self, error: Exception | None) -> None:
        self.is_lost = True
        if error is not None:
            self.reset.set()
        for on_loss in self._watchers:
            on_loss()

    @contextmanager
    def watch(self, on_loss: Callable[[], None]) -> Iterator[None]:
        """Call a function when the connection is lost, at once if it is."""
        self._watchers.append(on_loss)
        if self.is_lost:
            on_loss()
        try:
            yield
        finally:
            self._watchers.remove(on_loss)


def connection_of(scope: Scope) -> ClientConnection | None:
    found: ClientConnection | None = scope.get("extensions", {}).get(EXTENSION, {}).get("connection")
    return found
