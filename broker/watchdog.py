"""Notices when the event loop was busy with something else for too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from broker.logs import log
from broker.metrics import Metrics

EVERY: Final = 1.0
LONG: Final = 0.5
"""Seconds of silence that are worth a log line."""


@asynccontextmanager
async def watching(metrics: Metrics, *, every: float = EVERY) -> AsyncIterator[None]:
    """By the loop's own clock: what is measured is the loop, not the time of day."""
    watch = asyncio.create_task(_watch(metrics, every), name="watchdog")
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _watch(metrics: Metrics, every: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every
        await asyncio.sleep(every)
        late = max(0.0, loop.time() - due)
        metrics.loop_lag.observe(late)
        if late >= LONG:
            log.warning("the event loop stood still", action="loop_stalled", seconds=round(late, 2))
