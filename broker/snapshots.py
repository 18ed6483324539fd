"""What is looked at now and then, and shared by all who ask in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from broker.clock import Clock

T = TypeVar("T")


class Snapshot(Generic[T]):
    """A look that is taken when somebody asks and the last one is older than `seconds`; by one for all who ask.

    Nobody asks: nothing is looked at. A look that fails is an error for who took it, and the next one tries again.
    """

    def __init__(self, look: Callable[[], Awaitable[T]], *, seconds: float, clock: Clock) -> None:
        self._look = look
        self._seconds = seconds
        self._clock = clock
        self._looking = asyncio.Lock()
        self._taken: tuple[T, float] | None = None

    async def get(self) -> T:
        async with self._looking:
            if self._taken is None or self.fresh_for <= 0:
                self._taken = await self._look(), self._clock.monotonic()
            return self._taken[0]

    @property
    def fresh_for(self) -> float:
        """Seconds until the next one may be taken."""
        if self._taken is None:
            return 0.0
        return self._taken[1] + self._seconds - self._clock.monotonic()
