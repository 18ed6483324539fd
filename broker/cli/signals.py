"""Termination signals: Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio


@contextmanager
def termination_signal() -> Iterator[Callable[[], Awaitable[None]]]:
    """Keep SIGINT and SIGTERM from ending the process; yield a function that waits for one of them.

    Enter before the first output: a process that reads it may send the signal at once.
    """
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

        async def wait_for_signal() -> None:
            async for _ in signals:
                return

        yield wait_for_signal
