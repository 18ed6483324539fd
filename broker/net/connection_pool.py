"""Kept-alive connections by origin."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Final

from broker.net.connection import HttpConnection, Origin
from broker.net.dialing import Dialer

KEEPALIVE_SECONDS: Final = 5.0
"""Short, so that an order rarely uses a connection that the provider is about to close."""
MAX_IDLE: Final = 128
"""Connections of one pool that wait: whoever names a host of its own for each download must not use up the sockets."""


class ConnectionPool:
    """At most `MAX_IDLE` connections that wait for their next request, at most `KEEPALIVE_SECONDS` each.

    No timer runs while there are none.

    A connection is reused for the scheme, host and port that it was dialed for, so the policy of the dialer has
    allowed its address for this very origin.
    """

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer
        self._idle: defaultdict[Origin, list[tuple[float, HttpConnection]]] = defaultdict(list)
        """With the time at which they are closed; the newest last."""
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def acquire(self, origin: Origin, seconds: float, *, is_new: bool = False) -> HttpConnection:
        """Return a connection for one request; see `Dialer.open`. is_new: never one that was used before."""
        idle = self._idle.get(origin)
        while idle and not is_new:
            _, connection = idle.pop()  # the newest: the others may expire
            if connection.is_alive():
                connection.is_reused = True
                return connection
            connection.close()
        return await self.dialer.open(origin, seconds)

    def release(self, connection: HttpConnection) -> None:
        """Keep the connection if its response arrived as a whole and may be followed by another, else close it."""
        if self._is_closed or sum(map(len, self._idle.values())) >= MAX_IDLE:
            connection.close()
        elif connection.make_idle():
            loop = asyncio.get_running_loop()
            self._idle[connection.origin].append((loop.time() + KEEPALIVE_SECONDS, connection))
            if self._sweep is None:
                self._sweep = loop.call_later(KEEPALIVE_SECONDS, self._close_expired)

    async def aclose(self) -> None:
        """Close the idle connections; those in use close when they are released."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for idle in self._idle.values():
            for _, connection in idle:
                connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # transports close their sockets in the next turn

    def _close_expired(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for origin, idle in list(self._idle.items()):
            while idle and idle[0][0] <= now:
                idle.pop(0)[1].close()
            if not idle:
                del self._idle[origin]
        due = min((idle[0][0] for idle in self._idle.values()), default=None)
        self._sweep = None if due is None else loop.call_at(due, self._close_expired)
