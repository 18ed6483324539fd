"""Requests that come more than once: one after the other where they share a key, one for all where an SDK repeats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from broker.clock import Clock

T = TypeVar("T")

REPEAT_SECONDS: Final = 10.0
"""An SDK repeats within seconds; who sends the same after that wants it again."""


class InTurn:
    """One at a time per key: whoever waited finds what those before it left."""

    def __init__(self) -> None:
        self._turns: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, key: Hashable) -> AsyncIterator[None]:
        lock, users = self._turns.get(key, (asyncio.Lock(), 0))
        self._turns[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(key)
            if users > 1:
                self._turns[key] = lock, users - 1


@dataclass(eq=False, kw_only=True)
class _Order(Generic[T]):
    """repeats: the numbers under which it was sent again; another request with one of them repeats another order."""

    begun: float
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    result: T | None = None
    repeats: set[int] = field(default_factory=set)


class Repeats(Generic[T]):
    """Orders without a key, of clients that send a request again by themselves and count how often.

    Such a repetition says that its first answer never came. If that order is still being written, or was answered
    when nobody listened any more, the repetition is joined to it. Known in this process only: who sends a key is
    safe everywhere.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._unanswered: dict[Hashable, list[_Order[T]]] = {}

    async def once(self, who: Hashable, number: int, order: Callable[[], Awaitable[T]]) -> T:
        """What `order` gives, or gave. who: caller and content. number: how often the client sent it before."""
        while number and (first := self._first(who, number)) is not None:
            first.repeats.add(number)
            await first.ended.wait()
            if first.result is not None:
                return first.result
        return await self._carry_out(who, order)

    def answered(self, who: Hashable, result: T) -> None:
        """The client has its answer, so a later request with the same content is another order."""
        left = [order for order in self._unanswered.pop(who, []) if order.result is not result]
        if left:
            self._unanswered[who] = left

    async def _carry_out(self, who: Hashable, order: Callable[[], Awaitable[T]]) -> T:
        mine = _Order[T](begun=self._clock.monotonic())
        self._unanswered.setdefault(who, []).append(mine)
        try:
            mine.result = await order()
        finally:
            mine.ended.set()
            self._forget()
        return mine.result

    def _first(self, who: Hashable, number: int) -> _Order[T] | None:
        self._forget()
        return next((order for order in self._unanswered.get(who, []) if number not in order.repeats), None)

    def _forget(self) -> None:
        """Those that failed, and those whose client had its time to come back."""
        since = self._clock.monotonic() - REPEAT_SECONDS
        for who, orders in list(self._unanswered.items()):
            left = [o for o in orders if not o.ended.is_set() or (o.result is not None and o.begun > since)]
            if left:
                self._unanswered[who] = left
            else:
                del self._unanswered[who]
