"""Daily budget: the most that the orders of one UTC day can cost (BROKER_DAILY_BUDGET), over all processes.

An order reserves the most that it can cost in the transaction that creates its tasks, and is refused if that does not
fit in what is left. When a task ends, its reservation becomes what its attempts cost (`storage.limits.budgets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.clock import Clock, iso
from broker.errors import ApiError
from broker.orders import Quote
from storage.ledger import SECONDS_PER_DAY
from storage.limits.budgets import MICROS_PER_USD, Budgets, day_of, to_micros
from storage.sql.database import Statement
from storage.sql.scope import is_private


@dataclass(frozen=True, kw_only=True)
class BudgetState:
    """The budget of the current day."""

    limit_micros: int
    used_micros: int
    """Reserved by orders that have not ended, or spent."""
    resets_at: float
    """Seconds since the epoch."""

    @property
    def left_micros(self) -> int:
        """Return what new orders can reserve; never negative."""
        return max(0, self.limit_micros - self.used_micros)


@dataclass(frozen=True, kw_only=True)
class DailyBudget:
    """The budget of a day, for all callers together."""

    clock: Clock
    budgets: Budgets
    limit_usd: float | None
    """None: no budget, and nothing is reserved."""

    async def read_state(self, at: float | None = None) -> BudgetState | None:
        """Return the budget of the day of a moment, today if None; None without a budget."""
        if self.limit_usd is None:
            return None
        day = day_of(self.clock.now() if at is None else at)
        return BudgetState(
            limit_micros=to_micros(self.limit_usd),
            used_micros=await self.budgets.get_used(day),
            resets_at=float((day + 1) * SECONDS_PER_DAY),
        )

    async def read_usd(self) -> dict[str, float]:
        """Return `limit` and `used` of today in USD; empty without a budget."""
        state = await self.read_state()
        amounts = {} if state is None else {"limit": state.limit_micros, "used": state.used_micros}
        return {name: micros / MICROS_PER_USD for name, micros in amounts.items()}

    def check_priced(self, quotes: Sequence[Quote]) -> None:
        """Raise `ApiError("quota_exceeded")` for orders of unknown price, which `reserve` takes for free ones."""
        if self.limit_usd is not None and any(quote.max_house_usd is None for quote in quotes):
            raise ApiError(
                "quota_exceeded",
                "The price of this order is not known, so it cannot be reserved in the daily budget "
                "(BROKER_DAILY_BUDGET): choose a model and a provider with a price in GET /api/models.",
            )

    async def check(self, owner: str, *quotes: Quote, at: float | None = None) -> None:
        """Raise `ApiError("quota_exceeded")`, with the time of reset, if orders with these quotes do not fit.

        at: when they are created, now if None. The amounts of the budget are for the operator, not for users.
        """
        state = await self.read_state(at)
        if state is None:
            return
        self.check_priced(quotes)
        most = _most_micros(quotes)
        can_cost = f"This order can cost up to {_usd(most)} USD"
        left, whole = "less is", " of this broker"
        if not is_private(owner):
            left = f"{_usd(state.left_micros)} USD are"
            whole = f" of {_usd(state.limit_micros)} USD (BROKER_DAILY_BUDGET)"
        if most > state.limit_micros:
            raise ApiError(
                "quota_exceeded",
                f"{can_cost}, more than the whole daily budget{whole}: order fewer or smaller images.",
            )
        if most > state.left_micros:
            raise ApiError(
                "quota_exceeded",
                f"{can_cost}, and {left} left of the daily budget{whole}. It resets at {iso(state.resets_at)}.",
                retryable=True,
                retry_after=max(1.0, state.resets_at - self.clock.now()),
            )

    def share_of_task(self, quote: Quote) -> int | None:
        """Return the reservation of each task of an order, in millionths of a USD; None without a budget."""
        return None if self.limit_usd is None else to_micros(quote.max_house_usd or 0.0)

    def reserve(self, quotes: Sequence[Quote], created_at: float) -> list[Statement]:
        """Return the statement that reserves orders; `Stale` if they do not fit. Empty without a budget.

        It belongs into the transaction that creates the tasks, at `created_at`.
        """
        if self.limit_usd is None:
            return []
        return [self.budgets.reserve(day_of(created_at), _most_micros(quotes), limit=to_micros(self.limit_usd))]


def _most_micros(quotes: Sequence[Quote]) -> int:
    """Return the most that orders can cost, in millionths of a USD."""
    return sum(to_micros(quote.max_house_usd or 0.0) * quote.count for quote in quotes)


def _usd(micros: int) -> str:
    return f"{micros / MICROS_PER_USD:.6f}".rstrip("0").rstrip(".")
