"""Rate limit: at most RATE_LIMIT_PER_MINUTE images per caller, counted in the database over all processes.

A window of one minute begins with the first order after the window before. So 60 seconds that lie in two windows can
see up to twice the limit; an exact count would cost every order one more statement, and every task one more index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from broker.clock import Clock
from broker.errors import ApiError
from storage.limits.rate_limits import WINDOW_SECONDS, RateLimits
from storage.sql.database import Statement


@dataclass(frozen=True, kw_only=True)
class RateLimiter:
    """Rate limiter with one-minute windows, per caller."""

    clock: Clock
    usage: RateLimits
    per_minute: int

    def check_count(self, count: int) -> None:
        """Raise `ApiError("rate_limited")` if `count` images are more than the limit, which `acquire` does not see."""
        if count > self.per_minute:
            raise ApiError("rate_limited", f"At most {self.per_minute} images can be ordered at once: order fewer.")

    async def check_allowance(self, caller: str, count: int) -> None:
        """Raise `ApiError("rate_limited")`, with the seconds to wait, if `count` more images exceed the limit."""
        now, usage = self.clock.now(), await self.usage.get(caller)
        if usage is None or not usage.is_current(now) or usage.used + count <= self.per_minute:
            return
        wait = min(max(1.0, usage.started_at + WINDOW_SECONDS - now), WINDOW_SECONDS)
        raise ApiError(
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
        return self.usage.add_usage(caller, count, limit=self.per_minute, now=self.clock.now())
