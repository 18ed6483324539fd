"""Limits of orders together: rate limit, quotas of the owner, daily budget.

An order is checked before its work, for the sake of the error, and decided on by statements of its transaction. One
without work before its transaction is checked only after that has failed: the check would read what the transaction
counts anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.ordering.budgets import DailyBudget
from broker.ordering.drafts import OrderWriting
from broker.ordering.quotas import OrderNeeds, OwnerQuotas
from broker.ordering.rate_limit import RateLimiter
from broker.orders import Quote
from storage.sql.database import Statement
from storage.sql.scope import is_private


@dataclass(frozen=True, kw_only=True)
class OrderLimits:
    """The limits that an order must fit in."""

    limiter: RateLimiter
    quotas: OwnerQuotas
    budget: DailyBudget

    async def check_order(
        self, caller: str, quotes: Sequence[Quote], needs: OrderNeeds | None = None, at: float | None = None
    ) -> None:
        """Raise `ApiError` for an order that does not fit.

        needs: without them, the sizes of its references are not known yet. at: when it is created, now if None.
        """
        count = sum(quote.count for quote in quotes)
        self.limiter.check_count(count)
        await self.limiter.check_allowance(caller, count)
        await self.check_quota(caller, quotes, needs, at)

    async def check_quota(
        self, caller: str, quotes: Sequence[Quote], needs: OrderNeeds | None = None, at: float | None = None
    ) -> None:
        """Do the same without the rate limit, which says nothing about an order that is not created."""
        await self.quotas.check_order(caller, needs or OrderNeeds.from_quotes(quotes, 0), at=at)
        await self.budget.check(caller, *quotes, at=at)

    def check_possible(self, quotes: Sequence[Quote]) -> None:
        """Raise `ApiError` for an order that never fits, by what `reserve_order` does not see. Reads nothing."""
        count = 0
        for quote in quotes:
            count += quote.count
        self.limiter.check_count(count)
        self.budget.check_priced(quotes)

    async def reserve_order(self, writing: OrderWriting) -> list[Statement]:
        """Return the statements that count and reserve an order; `Stale` if it does not fit.

        They belong into the transaction that creates its tasks.
        """
        first = writing.tasks[0]
        statements = [self.limiter.acquire(first.caller, len(writing.tasks))]
        if is_private(first.caller):
            statements += await self.quotas.reserve_order(first.caller, writing.needs, first.created_at)
        return statements + self.budget.reserve(writing.quotes, first.created_at)

    def shares_of_task(self, caller: str, quote: Quote) -> Mapping[str, Any]:
        """Return the columns of each task of an order that say what it reserves."""
        images, micros = self.quotas.shares_of_task(caller, quote)
        return {"reserved": self.budget.share_of_task(quote), "owner_images": images, "owner_micros": micros}
