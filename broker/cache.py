"""Cache of one value with a time to live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from broker.clock import Clock

T = TypeVar("T")


class TtlCache(Generic[T]):
    """Single-flight TTL cache: reloads on access when older than `seconds`, once for all concurrent readers.

    An error of `load` is raised to the reader that caused it; the next reader tries again.
    """

    def __init__(self, load: Callable[[], Awaitable[T]], *, seconds: float, clock: Clock) -> None:
        self._load = load
        self._seconds = seconds
        self._clock = clock
        self._loading = asyncio.Lock()
        self._loaded: tuple[T, float] | None = None

    async def get(self) -> T:
        loaded = self._loaded
        if loaded is not None and loaded[1] + self._seconds > self._clock.monotonic():  # without the lock
            return loaded[0]
        async with self._loading:
            if self._loaded is None or self.expires_in <= 0:
                self._loaded = await self._load(), self._clock.monotonic()
            return self._loaded[0]

    def expire(self) -> None:
        """Let the next reader load the value again: it is known to have changed."""
        self._loaded = None

    @property
    def expires_in(self) -> float:
        """Seconds until the value is loaded again."""
        if self._loaded is None:
            return 0.0
        return self._loaded[1] + self._seconds - self._clock.monotonic()
