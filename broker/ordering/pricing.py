"""Prices of orders: the quote before an order, and the most that it can cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from broker.ordering.appraisals import Appraisal
from broker.orders import Quote
from storage.ids import is_own_account


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """What orders cost, by the appraisals of their providers."""

    max_billed_attempts: int
    """Submissions of one order that can be billed: 1 unless an unknown outcome is submitted again."""

    def max_usd_price(self, appraisals: Collection[Appraisal]) -> float | None:
        """Return the most that one image can cost in USD if these providers may get the order; None if unknown."""
        known = [one.usd_price for one in appraisals if one.usd_price is not None]
        return max(known, default=0.0) * self.max_billed_attempts if len(known) == len(appraisals) else None

    def make_quote(self, candidates: Mapping[str, Appraisal], count: int) -> Quote:
        """Return the quote of `count` images. candidates: the accounts that may get the order, best first."""
        appraisals = list(candidates.values())
        first, house = appraisals[0], [one for account, one in candidates.items() if not is_own_account(account)]
        return Quote(
            price=first.price,
            count=count,
            unit=first.unit,
            usd_price=first.usd_price,
            max_usd_price=self.max_usd_price(appraisals),
            max_house_usd=self.max_usd_price(house),
            deadline_seconds=max([one.deadline_seconds for one in appraisals if one.deadline_seconds], default=None),
            is_metered=any(one.is_metered for one in appraisals),
        )
