"""Rate limit: at most RATE_LIMIT_PER_MINUTE images per caller, counted in the database over all processes.

The minute before counts in proportion to its share of the last 60 seconds, so one row per caller is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from broker.clock import Clock
from broker.errors import Refusal
from storage.database import Statement
from storage.rate_limits import RateLimits, RateUsage

_MINUTE: Final = 60.0
_ROUNDING: Final = 1e-6
"""Keeps rounding from refusing a request at the very moment named by Retry-After."""


@dataclass(frozen=True, kw_only=True)
class RateLimiter:
    """Sliding-window rate limiter, per caller."""

    clock: Clock
    usage: RateLimits
    per_minute: int

    async def check_allowance(self, caller: str, count: int) -> None:
        """Raise `Refusal("rate_limited")`, with the seconds to wait, if `count` more images exceed the limit."""
        if count > self.per_minute:
            raise Refusal("rate_limited", f"At most {self.per_minute} images can be ordered at once: order fewer.")
        wait = seconds_until_allowed(await self.usage.get(caller), count, self.per_minute, self.clock.now())
        if wait > 0:
            wait = max(1.0, wait)
            raise Refusal(
                "rate_limited",
                f"At most {self.per_minute} images can be ordered per minute (RATE_LIMIT_PER_MINUTE). "
                f"Try again in {math.ceil(wait)} seconds.",
                retryable=True,
                retry_after=wait,
            )

    def acquire(self, caller: str, count: int) -> Statement:
        """Return the statement that counts `count` images; `Stale` if the limit does not allow them.

        It belongs into the transaction that creates the tasks: nothing is counted for tasks that were not created.
        """
        minute, elapsed = divmod(self.clock.now(), _MINUTE)
        return self.usage.add_usage(
            caller, count, minute=int(minute), weight=1.0 - elapsed / _MINUTE, limit=self.per_minute + _ROUNDING
        )


def seconds_until_allowed(usage: RateUsage | None, count: int, per_minute: int, now: float) -> float:
    """Return how long to wait until `count` more images are within the limit; 0 if they are now."""
    minute, elapsed = divmod(now, _MINUTE)
    age = 0 if usage is None else int(minute) - usage.minute
    if usage is None or age not in {-1, 0, 1}:
        return 0.0
    # both minutes as they count now, then as they count once the next minute has begun
    used, before = (0, usage.used) if age == 1 else (usage.used, usage.used_before)
    if used + count <= per_minute:
        return max(0.0, _decay_seconds(before, per_minute - used - count) - elapsed)
    return _MINUTE - elapsed + _decay_seconds(used, per_minute - count)


def _decay_seconds(used_before: int, allowed: int) -> float:
    """Return how far into a minute the one before counts for no more than `allowed`."""
    return 0.0 if used_before <= allowed else _MINUTE * (1.0 - allowed / used_before)
