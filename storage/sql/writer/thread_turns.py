"""Turns of threads beside a busy event loop.

A thread that waits for the GIL is woken at each system call of the loop, finds that the loop has taken the GIL back,
and waits again for a whole switch interval. So a loop without idle moments keeps it out for seconds, whatever the
interval: 64 writers got 64 transactions per second then, and get 19 000 since the loop waits for them. A loop that has
slept since the last look is left alone: the thread had its turn then, and to wait would only delay requests. The
processor time that the loop got does not tell, because other programs take some of it.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

FIRST_LOOK_SECONDS: Final = 0.001
DISK_LOOK_SECONDS: Final = 0.004
"""Between two looks while the thread waits for the disk: after that it needs the GIL once."""
MAX_LOOK_SECONDS: Final = 0.008
WAKE_SECONDS: Final = 0.00005
"""A thread that waits for the GIL wakes up within that time."""
MAX_WAIT_SECONDS: Final = 0.002


class ThreadTurns:
    """Makes an event loop wait for a thread that needs the GIL.

    At the gate it waits for what it has just handed over. If it has no idle moments, it waits once a millisecond, too,
    for a thread that has had work for so long: one that reads, or has the answer of the disk.
    The thread holds `computing` while it needs the GIL again and again, and not while it waits for the disk.
    """

    def __init__(self) -> None:
        self.computing = threading.Lock()
        self._gate = threading.Lock()
        """Held from the hand-over of work until the thread waits for something else, or has done it."""
        self._awaited = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sleeps = 0
        self._is_waiting = False
        """Of the thread; also when the disk has answered, until it has the GIL."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Do what was handed over."""
        with self.computing:
            try:
                yield
            finally:
                self._open_gate()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let the loop go on while the thread waits for something else."""
        self._is_waiting = True
        self.computing.release()
        self._open_gate()
        try:
            yield
        finally:
            self._is_waiting = False
            self.computing.acquire()

    def _open_gate(self) -> None:
        if self._gate.locked():
            self._gate.release()

    # -- in the event loop

    def close_gate(self) -> None:
        """Do this before work is handed over to an idle thread."""
        self._gate.acquire(blocking=False)

    def wait_at_gate(self) -> None:
        """Wait until the thread waits for something else, or has done its work; two milliseconds at most."""
        sleeps = _count_sleeps()
        self._gate.acquire(timeout=MAX_WAIT_SECONDS)
        self._sleeps += _count_sleeps() - sleeps  # this was not an idle moment

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
        has_slept = _count_sleeps() != self._sleeps
        next_look = FIRST_LOOK_SECONDS if has_slept else self._wait_for_thread(seconds)
        self._sleeps = _count_sleeps()
        self._look_after(loop, next_look)

    def _wait_for_thread(self, seconds: float) -> float:
        """Let the thread compute; return the seconds until the next look. seconds: those before this one."""
        time.sleep(WAKE_SECONDS)
        if self._is_waiting:
            return DISK_LOOK_SECONDS
        if not self.computing.acquire(timeout=MAX_WAIT_SECONDS):
            return min(seconds * 2, MAX_LOOK_SECONDS)
        self.computing.release()
        return FIRST_LOOK_SECONDS


def _count_sleeps() -> int:
    """Return how often this thread has waited for anything; always 0 where the system does not count that."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw if sys.platform == "linux" else 0
