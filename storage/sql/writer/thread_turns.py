"""Turns of threads beside a busy event loop.

A thread that waits for the GIL is woken at each system call of the loop, finds that the loop has taken the GIL back,
and waits again for a whole switch interval. So a loop without idle moments keeps it out for seconds, whatever the
interval. It gives the GIL away for a moment once a millisecond while a thread has work. A loop that has slept since
then is left alone: the thread had its turn, and to wait would only delay requests. The processor time that the loop got
does not tell, because other programs take some of it.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LOOK_SECONDS: Final = 0.001
WAKE_SECONDS: Final = 0.00005
"""A thread that waits for the GIL wakes up within that time, and keeps the GIL until the loop asks it back."""


class ThreadTurns:
    """Gives threads their turns, while an event loop awaits them."""

    def __init__(self) -> None:
        self._awaited = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sleeps = 0

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Await a thread here."""
        self._awaited += 1
        if self._timer is None:
            self._look_later(asyncio.get_running_loop())
        try:
            yield
        finally:
            self._awaited -= 1
            if not self._awaited and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(LOOK_SECONDS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if _count_sleeps() == self._sleeps:
            time.sleep(WAKE_SECONDS)
        self._sleeps = _count_sleeps()
        self._look_later(loop)


def _count_sleeps() -> int:
    """Return how often this thread has waited for anything; always 0 where the system does not count that."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw if sys.platform == "linux" else 0
