"""Threads for the work on files.

A hop to the default executor of asyncio makes two futures, a condition, a shield and their callbacks: 30 µs, of which
the event loop pays most. Here it is one future.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar
from weakref import WeakMethod

T = TypeVar("T")

MAX_THREADS: Final = min(32, (os.cpu_count() or 1) + 4)
"""As many as asyncio has by default."""


class FileThreads:
    """A few threads, which start when they are needed and stay. Any number of event loops may use them."""

    def __init__(self) -> None:
        self._begin()
        beginning = WeakMethod(self._begin)
        os.register_at_fork(after_in_child=lambda: (begin := beginning()) and begin())

    def _begin(self) -> None:
        """Begin without threads, as a forked process does: it has none of those of its parent."""
        self._jobs: SimpleQueue[_Job[Any]] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._unfinished = 0
        """Jobs that wait or run."""

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking work in a thread. A cancelled caller waits for its end."""
        job = _Job(work, asyncio.get_running_loop())
        self._unfinished += 1
        if self._started < min(self._unfinished, MAX_THREADS):
            self._start_thread()
        self._jobs.put(job)
        try:
            return await job.end
        except asyncio.CancelledError:
            while not job.has_ended:
                job.end = job.loop.create_future()
                with suppress(asyncio.CancelledError, Exception):
                    await job.end
            raise
        finally:
            self._unfinished -= 1
            del job  # an error holds this frame, and the job holds the error

    def _start_thread(self) -> None:
        with self._lock:
            if self._started < MAX_THREADS:
                self._started += 1
                # daemons: whoever wants the end of their work waits for it
                threading.Thread(target=_run_jobs, args=(self._jobs,), name="files", daemon=True).start()


class _Job(Generic[T]):
    """Work with the future of its result."""

    def __init__(self, work: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.end: asyncio.Future[T] = loop.create_future()
        """Replaced when its waiter is cancelled."""
        self.has_ended = False

    def set_result(self, result: T) -> None:
        self.has_ended = True
        if not self.end.done():
            self.end.set_result(result)

    def set_error(self, error: BaseException) -> None:
        self.has_ended = True
        if not self.end.done():
            self.end.set_exception(error)


def _run_jobs(jobs: SimpleQueue[_Job[Any]]) -> None:
    while True:
        _run_job(jobs.get())


def _run_job(job: _Job[Any]) -> None:
    """Run a job; no reference to its result stays in the thread."""
    with suppress(RuntimeError):  # the loop is closed: no caller waits any more
        try:
            result = job.work()
        except BaseException as error:
            job.loop.call_soon_threadsafe(job.set_error, error)
        else:
            job.loop.call_soon_threadsafe(job.set_result, result)
        finally:
            del job  # an error holds this frame, and the job holds the error
