"""Being told to end: Ctrl-C at the desk, SIGTERM from whoever runs us."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio


@contextmanager
def told_to_end() -> Iterator[Callable[[], Awaitable[None]]]:
    """Within, SIGINT and SIGTERM no longer end the process; awaiting what is yielded waits for one of them.

    Enter before anything is printed: whoever reads that we are here may tell us at once to go.
    """
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

        async def told() -> None:
            async for _ in signals:
                return

        yield told
