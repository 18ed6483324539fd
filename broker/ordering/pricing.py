"""Prices of orders: the quote before an order, and the most that it can cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        return self._to_usd(provider, provider.build_request(order, None))

    def max_usd_price(self, providers: Iterable[Provider], order: Order) -> float | None:
        """Return the most that one image can cost in USD if these providers may get the order; None if unknown."""
        return self._max_usd([self.usd_price(provider, order) for provider in providers])

    def make_quote(self, candidates: Mapping[str, Provider], order: Order, count: int) -> Quote:
        """Return the quote of `count` images. candidates: the accounts that may get the order, best first."""
        offers = {account: provider.build_request(order, None) for account, provider in candidates.items()}
        prices = {account: self._to_usd(candidates[account], offer) for account, offer in offers.items()}
        deadlines = [offer["deadline_seconds"] for offer in offers.values() if offer.get("deadline_seconds")]
        first = next(iter(candidates))
        return Quote(
            price=offers[first].get("price"),
            count=count,
            unit=offers[first].get("unit"),
            usd_price=prices[first],
            max_usd_price=self._max_usd(list(prices.values())),
            max_house_usd=self._max_usd([price for account, price in prices.items() if not is_own_account(account)]),
            deadline_seconds=max(deadlines, default=None),
            is_metered=any(self.terms(provider.name).is_metered for provider in candidates.values()),
        )

    def _to_usd(self, provider: Provider, offer: Mapping[str, Any]) -> float | None:
        """Return the price of an image in USD. offer: as `Provider.build_request` returns it."""
        price, rate = offer.get("price"), self.terms(provider.name).usd_per_unit
        return None if price is None or rate is None else float(price * rate)

    def _max_usd(self, prices: Sequence[float | None]) -> float | None:
        """Return the most that one image can cost; None if one of the prices is unknown."""
        known = [price for price in prices if price is not None]
        return max(known, default=0.0) * self.max_billed_attempts if len(known) == len(prices) else None
