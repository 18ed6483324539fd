"""Turns of threads beside a busy event loop.

A thread that waits for the GIL is woken at each system call of the loop, finds that the loop has taken the GIL back,
and waits again for a whole switch interval. So a loop without idle moments keeps it out for seconds, whatever the
interval: 64 writers got 64 transactions per second then, and get 19 000 since the loop waits for them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

FIRST_LOOK_SECONDS: Final = 0.001
MAX_LOOK_SECONDS: Final = 0.064
BUSY_SHARE: Final = 0.8
"""Of the time since the last look: a loop that has computed for longer had hardly an idle moment."""
WAKE_SECONDS: Final = 0.00005
"""A thread that waits for the GIL wakes up within that time."""
MAX_WAIT_SECONDS: Final = 0.002


class ThreadTurns:
    """Makes a busy event loop wait for a thread that has work; an idle one is left alone.

    The thread holds `computing` while it needs the GIL again and again, and not while it waits for the disk.
    """

    def __init__(self) -> None:
        self.computing = threading.Lock()
        self._awaited = 0
        self._timer: asyncio.TimerHandle | None = None
        self._looked = (0.0, 0.0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let the loop go on while the thread waits for something else."""
        self.computing.release()
        try:
            yield
        finally:
            self.computing.acquire()

    # -- in the event loop

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look after the thread until as many calls of `end`."""
        self._awaited += 1
        if self._timer is None:
            self._look_after(loop, FIRST_LOOK_SECONDS)

    def end(self) -> None:
        self._awaited -= 1
        if not self._awaited and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_after(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._timer = loop.call_later(seconds, self._look, loop, seconds)

    def _look(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        is_slow = True
        if self._is_busy():
            time.sleep(WAKE_SECONDS)
            is_slow = not self.computing.acquire(timeout=MAX_WAIT_SECONDS)
            if not is_slow:
                self.computing.release()
        self._look_after(loop, min(seconds * 2, MAX_LOOK_SECONDS) if is_slow else FIRST_LOOK_SECONDS)

    def _is_busy(self) -> bool:
        """Return whether the loop has computed nearly all the time since the last look."""
        (then, computed), self._looked = self._looked, (time.monotonic(), time.thread_time())
        return self._looked[1] - computed > (self._looked[0] - then) * BUSY_SHARE
