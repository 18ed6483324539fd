"""The only clock of the broker, passed to every part that needs the time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, date, datetime
from typing import Protocol, overload


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch. It may be set, forwards and backwards."""

    def monotonic(self) -> float:
        """Seconds since some moment; only ever forwards."""


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def seconds_to_beat(interval_seconds: float) -> float:
    """Return the seconds until the loop's clock is a multiple of the interval.

    Periodic timers of all parts that sleep so long end together: an idle process wakes up once for all of them.
    """
    return interval_seconds - asyncio.get_running_loop().time() % interval_seconds


@overload
def iso(moment: float) -> str: ...
@overload
def iso(moment: float | None) -> str | None: ...
def iso(moment: float | None) -> str | None:
    """Return ISO 8601 in UTC, to the millisecond; None for None."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def day(moment: float) -> date:
    """The day in UTC."""
    return datetime.fromtimestamp(moment, UTC).date()
