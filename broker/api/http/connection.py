"""What a handler can learn about the connection of its request."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import Scope

EXTENSION: Final = "broker.connection"
"""Name of the ASGI extension; absent where an application is called without a server of ours."""


class Connection:
    """One connection of a client."""

    def __init__(self) -> None:
        self.is_lost = False
        self.reset = asyncio.Event()
        """Set when the connection ended with an error: the client left before it had read all."""

    def lose(self, error: Exception | None) -> None:
        self.is_lost = True
        if error is not None:
            self.reset.set()


def connection_of(scope: Scope) -> Connection | None:
    found: Connection | None = scope.get("extensions", {}).get(EXTENSION, {}).get("connection")
    return found
