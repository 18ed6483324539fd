"""Prices of orders: the quote before an order, and the most that it can cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from broker.catalog import ProviderTerms
from broker.orders import Order, Quote
from broker.providers.base import Provider
from storage.ids import is_own_account


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """What providers charge, by the catalog."""

    terms: Callable[[str], ProviderTerms]
    """Provider → its terms."""
    max_billed_attempts: int
    """Submissions of one order that can be billed: 1 unless an unknown outcome is submitted again."""

    def usd_price(self, provider: Provider, order: Order) -> float | None:
        """Return the price of one image at a provider in USD; None if unknown."""
        price = provider.build_request(order, None).get("price")
        rate = self.terms(provider.name).usd_per_unit
        return None if price is None or rate is None else float(price * rate)

    def max_usd_price(self, providers: Iterable[Provider], order: Order) -> float | None:
        """Return the most that one image can cost in USD if these providers may get the order; None if unknown."""
        prices = [self.usd_price(provider, order) for provider in providers]
        known = [price for price in prices if price is not None]
        return max(known, default=0.0) * self.max_billed_attempts if len(known) == len(prices) else None

    def make_quote(self, candidates: Mapping[str, Provider], order: Order, count: int) -> Quote:
        """Return the quote of `count` images. candidates: the accounts that may get the order, best first."""
        first, *others = (provider.build_request(order, None) for provider in candidates.values())
        deadlines = [offer["deadline_seconds"] for offer in (first, *others) if offer.get("deadline_seconds")]
        house = [provider for account, provider in candidates.items() if not is_own_account(account)]
        return Quote(
            price=first.get("price"),
            count=count,
            unit=first.get("unit"),
            usd_price=self.usd_price(next(iter(candidates.values())), order),
            max_usd_price=self.max_usd_price(candidates.values(), order),
            max_house_usd=self.max_usd_price(house, order),
            deadline_seconds=max(deadlines, default=None),
            is_metered=any(self.terms(provider.name).is_metered for provider in candidates.values()),
        )
