"""Measurement of event-loop lag: detects code that blocked the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from broker.clock import seconds_to_beat
from broker.logs import log
from broker.metrics import Metrics

INTERVAL_SECONDS: Final = 1.0
WARN_LAG_SECONDS: Final = 0.5


@asynccontextmanager
async def measure_loop_lag(metrics: Metrics, *, interval_seconds: float = INTERVAL_SECONDS) -> AsyncIterator[None]:
    """Measure while the block runs, by the loop's own clock: the system clock may be set."""
    measuring = asyncio.create_task(_measure(metrics, interval_seconds), name="loop_lag")
    try:
        yield
    finally:
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)


async def _measure(metrics: Metrics, interval_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        pause = seconds_to_beat(interval_seconds)
        due = loop.time() + pause
        await asyncio.sleep(pause)
        lag = max(0.0, loop.time() - due)
        metrics.loop_lag.observe(lag)
        if lag >= WARN_LAG_SECONDS:
            log.warning("the event loop was blocked", action="loop_stalled", seconds=round(lag, 2))
