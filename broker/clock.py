"""The only clock of the broker, passed to every part that needs the time."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final, Protocol, overload

_EPOCH: Final = date(1970, 1, 1)
_MINUTES: Final = tuple(f"T{minute // 60:02}:{minute % 60:02}:" for minute in range(24 * 60))
"""Texts are looked up: each response has three moments, and `datetime` would need three times as long."""
_SECONDS: Final = tuple(f"{second:02}." for second in range(60))
_MILLISECONDS: Final = tuple(f"{millisecond:03}Z" for millisecond in range(1000))


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
    seconds = math.floor(moment)
    milliseconds = round((moment - seconds) * 1e6) // 1000  # as `datetime` rounds
    if milliseconds == 1000:
        seconds, milliseconds = seconds + 1, 0
    days, of_day = divmod(seconds, 86_400)
    minute, second = divmod(of_day, 60)
    return _date_text(days) + _MINUTES[minute] + _SECONDS[second] + _MILLISECONDS[milliseconds]


@lru_cache(maxsize=1024)
def _date_text(days: int) -> str:
    """Return the date so many days after the epoch."""
    return (_EPOCH + timedelta(days)).isoformat()


def day(moment: float) -> date:
    """The day in UTC."""
    return datetime.fromtimestamp(moment, UTC).date()
