"""Rate limit counters: how many images each caller ordered in this minute and in the one before.

One row per caller, updated by one compare-and-set statement, so that the limit holds over all processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from storage.database import Database, Statement, record


@dataclass(frozen=True, kw_only=True)
class RateUsage:
    """What a caller used of its limit."""

    minute: int
    """Minutes since the epoch."""
    used: int
    used_before: int
    """Of the minute before."""


@dataclass(frozen=True)
class RateLimits:
    """Rate limit counters in the database."""

    database: Database

    async def get(self, caller: str) -> RateUsage | None:
        row = await self.database.point("SELECT * FROM rate_limits WHERE caller = :caller", caller=caller)
        return record(RateUsage, row) if row else None

    def add_usage(self, caller: str, count: int, *, minute: int, weight: float, limit: float) -> Statement:
        """Count `count` images; `Stale` if more than `limit` would be used then.

        weight: the share of the minute before that lies within the last 60 seconds. A row of the next minute was
        written by a process whose clock is slightly ahead, and is continued; any other row is outdated.
        """
        return Statement(
            sql=f"""INSERT INTO rate_limits AS r (caller, minute, used, used_before)
                VALUES (:caller, :minute, :count, 0)
                ON CONFLICT (caller) DO UPDATE SET
                minute = {_IS_CURRENT} r.minute ELSE :minute END,
                used = {_IS_CURRENT} r.used ELSE 0 END + :count,
                used_before = {_USED_BEFORE}
                WHERE {_IS_CURRENT} r.used ELSE 0 END + :count
                    + ({_USED_BEFORE}) * CAST(:weight AS DOUBLE PRECISION) <= CAST(:limit AS DOUBLE PRECISION)""",
            params={"caller": caller, "count": count, "minute": minute, "weight": weight, "limit": limit},
            must_change=True,
        )


_IS_CURRENT = "CASE WHEN r.minute = :minute OR r.minute = :minute + 1 THEN"
_USED_BEFORE = f"{_IS_CURRENT} r.used_before WHEN r.minute = :minute - 1 THEN r.used ELSE 0 END"
