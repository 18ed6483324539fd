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
        self._loading: asyncio.Event | None = None
        """Set at the end of the load that is going on."""
        self._loaded: tuple[T, float] | None = None

    async def get(self) -> T:
        while (loaded := self._loaded) is None or loaded[1] + self._seconds <= self._clock.monotonic():
            if self._loading is None:
                return await self._reload()
            await self._loading.wait()  # all readers go on at once; a lock would let one go on in each turn of the loop
        return loaded[0]

    async def _reload(self) -> T:
        loading = self._loading = asyncio.Event()
        try:
            loaded = self._loaded = await self._load(), self._clock.monotonic()
        finally:
            self._loading = None
            loading.set()
        return loaded[0]

    def expire(self) -> None:
        """Let the next reader load the value again: it is known to have changed."""
        self._loaded = None

    @property
    def expires_in(self) -> float:
        """Seconds until the value is loaded again."""
        if self._loaded is None:
            return 0.0
        return self._loaded[1] + self._seconds - self._clock.monotonic()
