"""Notifications within one process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial


class Subscription:
    """Subscription to a channel; notifications while no caller waits are kept as one."""

    __slots__ = ("_is_notified", "_waiting")  # thousands may wait, and an asyncio.Event takes a kibibyte

    def __init__(self) -> None:
        self._is_notified = False
        self._waiting: tuple[asyncio.Future[bool], ...] = ()

    def notify(self) -> None:
        self._is_notified = True
        for waiting in self._waiting:
            _end_wait(waiting, is_notified=True)

    async def wait(self, timeout: float | None = None) -> bool:
        """Return True at the next notification, False after `timeout` seconds; None: wait without limit."""
        if not self._is_notified and not await self._wait_notified(timeout):
            return False
        self._is_notified = False
        return True

    async def _wait_notified(self, timeout: float | None) -> bool:
        """Return whether a notification ended the wait."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[bool] = loop.create_future()
        # a timer alone takes a third of the time of `asyncio.timeout`
        timer = None if timeout is None else loop.call_later(max(0.0, timeout), partial(_end_wait, waiting))
        self._waiting += (waiting,)
        try:
            return await waiting
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting = tuple([one for one in self._waiting if one is not waiting])


def _end_wait(waiting: asyncio.Future[bool], *, is_notified: bool = False) -> None:
    if not waiting.done():
        waiting.set_result(is_notified)


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
