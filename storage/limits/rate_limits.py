"""Rate limit counters: how many images each caller ordered in its current window.

One row per caller, updated by one compare-and-set statement, so that the limit holds over all processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_one_as

WINDOW_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class RateUsage:
    """What a caller used of its limit."""

    started_at: float
    """When the window began: with the first order after the window before."""
    used: int

    def is_current(self, now: float) -> bool:
        """Return False once the window is over, or if it began before the clock was set back."""
        return abs(self.started_at - now) < WINDOW_SECONDS


@dataclass(frozen=True)
class RateLimits:
    """Rate limit counters in the database."""

    database: Database

    async def get(self, caller: str) -> RateUsage | None:
        sql = "SELECT * FROM rate_limits WHERE caller = :caller"
        return await fetch_one_as(self.database, RateUsage, sql, caller=caller)

    def add_usage(self, caller: str, count: int, *, limit: int, now: float) -> Statement:
        """Count `count` images; `Stale` if more than `limit` would be used in the window then.

        Like `lock_usage`, it locks the caller's row until the transaction ends.
        """
        return Statement(
            sql=_add_text(limit),
            must_change=True,
            row=(caller, now, count),
        )

    def lock_usage(self, caller: str) -> Statement:
        """Lock the caller's row until the transaction ends: its other transactions count one after the other."""
        return Statement(
            sql="""INSERT INTO rate_limits AS r (caller, started_at, used) VALUES (:caller, 0, 0)
                ON CONFLICT (caller) DO UPDATE SET used = r.used""",
            params={"caller": caller},
        )


_IS_CURRENT = f"abs(r.started_at - excluded.started_at) < {WINDOW_SECONDS}"


@lru_cache
def _add_text(limit: int) -> str:
    return f"""INSERT INTO rate_limits AS r (caller, started_at, used) VALUES (:caller, :now, :count)
        ON CONFLICT (caller) DO UPDATE SET
        started_at = CASE WHEN {_IS_CURRENT} THEN r.started_at ELSE excluded.started_at END,
        used = CASE WHEN {_IS_CURRENT} THEN r.used ELSE 0 END + excluded.used
        WHERE CASE WHEN {_IS_CURRENT} THEN r.used ELSE 0 END + excluded.used <= {limit:d}"""
