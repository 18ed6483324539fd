"""Notifications within one process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Subscription:
    """Subscription to a channel; notifications while no caller waits are kept as one."""

    def __init__(self) -> None:
        self._notified = asyncio.Event()

    def notify(self) -> None:
        self._notified.set()

    async def wait(self, timeout: float) -> bool:
        """Return True at the next notification, False after `timeout` seconds."""
        try:
            async with asyncio.timeout(max(0.0, timeout)):
                await self._notified.wait()
        except TimeoutError:
            return False
        self._notified.clear()
        return True


class LocalChannels:
    """Subscriptions by channel; a notification reaches those that exist at that moment."""

    def __init__(self) -> None:
        self._subscriptions: defaultdict[str, set[Subscription]] = defaultdict(set)

    def notify(self, *channels: str) -> None:
        for channel in channels:
            for subscription in self._subscriptions.get(channel, ()):
                subscription.notify()

    def notify_all(self) -> None:
        """Notify all channels, after a time in which notifications may have been lost."""
        self.notify(*self._subscriptions)

    @contextmanager
    def listen(self, channel: str) -> Iterator[Subscription]:
        subscription = Subscription()
        self._subscriptions[channel].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[channel].discard(subscription)
            if not self._subscriptions[channel]:
                del self._subscriptions[channel]
