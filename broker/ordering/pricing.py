"""Prices of orders: the quote before an order, and the most that it can cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from broker.orders import Order, Quote
from broker.providers.base import Provider


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """What the providers in use charge, by the catalog."""

    providers: Mapping[str, Provider]
    is_metered: Callable[[str], bool]
    """Provider → True if it charges by tokens or seconds."""
    max_billed_attempts: int
    """Submissions of one order that can be billed: 1 unless an unknown outcome is submitted again."""

    def max_usd_price(self, names: Sequence[str], order: Order) -> float | None:
        """Return the most that one image can cost in USD if these providers may get the order; None if unknown."""
        prices = [self.providers[name].usd_price(order) for name in names]
        known = [price for price in prices if price is not None]
        return max(known) * self.max_billed_attempts if len(known) == len(prices) else None

    def make_quote(self, candidates: Sequence[str], order: Order, count: int) -> Quote:
        """Return the quote of `count` images. candidates: the providers that may get the order, best first."""
        first = self.providers[candidates[0]]
        offer = first.build_request(order, None)
        return Quote(
            price=offer.get("price"),
            count=count,
            unit=offer.get("unit"),
            usd_price=first.usd_price(order),
            max_usd_price=self.max_usd_price(candidates, order),
            deadline_seconds=offer.get("deadline_seconds"),
            is_metered=self.is_metered(first.name),
        )
