"""Time limits of a connection, and the timers that watch them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

_TOLERANCE_SECONDS: Final = 0.005
"""A timer that fires so early is on time: the clock of uvloop has milliseconds."""


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """Limits on the time and the number of connections that a client may use."""

    head_seconds: float = 10.0
    """For the head of a request, from its first byte on; also for the rest of a request that is already answered."""
    idle_seconds: int = 5
    """Between two requests."""
    body_seconds: float = 3600.0
    """For a complete body."""
    window_seconds: float = 30.0
    min_bytes_per_second: int = 1024
    """Average over a window. Below it a client is treated as stalled, not as slow."""
    max_per_peer: int = 64
    """Connections of one address other than loopback."""
    drain_seconds: int = 7
    """For requests in progress when the server stops."""
    last_request_seconds: float = 0.1
    """For requests and handshakes on their way when the server stops: a round trip, and a busy moment of the loop."""


class Phase(Enum):
    """A part of a connection's time, each with a deadline of its own."""

    IDLE = auto()
    """A response has been sent; the next request has not begun."""
    HEAD = auto()
    BODY = auto()
    LEFTOVER = auto()
    """The rest of a request that is already answered."""
    SERVER = auto()
    """The request is complete: time that passes now is not the client's."""


class LazyTimer:
    """A timer that is started, moved and stopped without touching the event loop where that can be avoided.

    A request on a kept-alive connection stops the deadline of the idle time and starts the next one, which is later:
    the timer that runs already finds it when it fires, and starts itself again for what is left.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_expiry: Callable[[], None]) -> None:
        self._loop = loop
        self._on_expiry = on_expiry
        self._deadline: float | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._fires_at = 0.0

    def start(self, seconds: float) -> None:
        """Expire in `seconds`, instead of when it would have."""
        now = self._loop.time()
        self._deadline = now + seconds
        if self._handle is None or self._fires_at > self._deadline:
            self._arm(now, self._deadline)

    def stop(self) -> None:
        """Do not expire until the next start."""
        self._deadline = None

    def cancel(self) -> None:
        """Stop for good: the event loop forgets the timer."""
        self._deadline = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, now: float, deadline: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._fires_at = deadline
        self._handle = self._loop.call_later(deadline - now, self._fire)

    def _fire(self) -> None:
        self._handle = None
        if self._deadline is None:
            return
        now = self._loop.time()
        if self._deadline - now > _TOLERANCE_SECONDS:
            self._arm(now, self._deadline)
        else:
            self._deadline = None
            self._on_expiry()
