"""Daily budgets: what the tasks of each UTC day may cost or have cost, in millionths of a USD.

A task created under a budget holds a reservation (`tasks.reserved`): the most that it can cost until it ends, and from
then on what its attempts cost (`storage.limits.settlement`). `used` of a day is the sum of the reservations of the
tasks created on that day, purged ones included; both change in one transaction, so each reservation is settled once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from storage.ledger import KEPT_DAYS, SECONDS_PER_DAY
from storage.sql.database import Database, Statement

MICROS_PER_USD: Final = 1_000_000


def to_micros(usd: float) -> int:
    """Return an amount in millionths of a USD, rounded up."""
    return math.ceil(round(usd * MICROS_PER_USD, 3))


def day_of(moment: float) -> int:
    """Return the UTC day of a moment, in days since the epoch."""
    return int(moment) // SECONDS_PER_DAY


@dataclass(frozen=True)
class Budgets:
    """Reserved and spent amounts, one row per day, so that a budget holds over all processes."""

    database: Database

    async def get_used(self, day: int) -> int:
        """Return what is reserved or spent of a day, in millionths of a USD."""
        row = await self.database.fetch_one("SELECT used FROM budget_days WHERE day = :day", day=day)
        return int(row["used"]) if row else 0

    def reserve(self, day: int, amount: int, *, limit: int) -> Statement:
        """Reserve an amount of a day; `Stale` if more than `limit` would be used then. Millionths of a USD.

        An amount of 0 always fits, also in a day whose costs exceed its limit.
        For the transaction that creates the tasks whose reservations it is the sum of.
        """
        return Statement(
            sql="""INSERT INTO budget_days AS b (day, used)
                SELECT CAST(:day AS BIGINT), CAST(:amount AS BIGINT)
                WHERE CAST(:amount AS BIGINT) <= CAST(:limit AS BIGINT)
                ON CONFLICT (day) DO UPDATE SET used = b.used + excluded.used
                WHERE excluded.used = 0 OR b.used + excluded.used <= CAST(:limit AS BIGINT)""",
            params={"day": day, "amount": amount, "limit": limit},
            must_change=True,
        )

    async def delete_older(self, now: float) -> int:
        """Delete the rows of days that are more than `KEPT_DAYS` ago; return how many."""
        return await self.database.execute("DELETE FROM budget_days WHERE day < :day", day=day_of(now) - KEPT_DAYS)
