"""Notifications within one process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from storage.sql.database import Subscription


class LocalChannels:
    """Subscriptions by channel; a notification reaches those that exist at that moment."""

    def __init__(self) -> None:
        self._bells: defaultdict[str, set[_EventSubscription]] = defaultdict(set)

    def notify(self, *channels: str) -> None:
        for channel in channels:
            for bell in self._bells.get(channel, ()):
                bell.notify()

    def notify_all(self) -> None:
        """Notify all channels, after a time in which notifications may have been lost."""
        self.notify(*self._bells)

    @contextmanager
    def listen(self, channel: str) -> Iterator[Subscription]:
        bell = _EventSubscription()
        self._bells[channel].add(bell)
        try:
            yield bell
        finally:
            self._bells[channel].discard(bell)
            if not self._bells[channel]:
                del self._bells[channel]


class _EventSubscription:
    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def notify(self) -> None:
        self._rung.set()

    async def wait(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(max(0.0, timeout)):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True
