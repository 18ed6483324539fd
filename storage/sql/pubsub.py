"""Notifications within one process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Subscription:
    """Subscription to a channel; notifications while no caller waits are kept as one."""

    __slots__ = ("_is_notified", "_waiting")  # thousands may wait, and an asyncio.Event takes a kibibyte

    def __init__(self) -> None:
        self._is_notified = False
        self._waiting: tuple[asyncio.Future[None], ...] = ()

    def notify(self) -> None:
        self._is_notified = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def wait(self, timeout: float | None = None) -> bool:
        """Return True at the next notification, False after `timeout` seconds; None: wait without limit."""
        if not self._is_notified:
            if timeout is None:
                await self._wait_notified()
            else:
                try:
                    async with asyncio.timeout(max(0.0, timeout)):
                        await self._wait_notified()
                except TimeoutError:
                    return False
        self._is_notified = False
        return True

    async def _wait_notified(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting += (waiting,)
        try:
            await waiting
        finally:
            self._waiting = tuple(one for one in self._waiting if one is not waiting)


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
