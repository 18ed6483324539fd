"""Appraisals: what a provider makes of an order, which is the same for all orders of one shape; and quotes of them.

It depends on the catalog and on the provider's settings, which do not change while a process runs, and on the shape of
the order: everything but its prompt and the value of its seed. Kept by shape, it costs an order 2 µs instead of 40 per
provider.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from broker.catalog import Catalog, ProviderTerms
from broker.errors import FieldError
from broker.orders import Order, Quote
from broker.providers.base import Provider
from storage.ids import is_own_account

MAX_KEPT: Final = 4096
"""Shapes of a process; beyond that, all are forgotten. Real ones are some hundreds."""

Obstacle = tuple[str, FieldError]
"""Error code and field."""


@dataclass(frozen=True, kw_only=True)
class Appraisal:
    """What a provider makes of orders of one shape."""

    provider: str
    obstacle: Obstacle | None
    """Why it cannot serve them; None if it can."""
    ignored: tuple[str, ...] = ()
    """Parameters that it cannot use; of an order that it can serve, like the other fields."""
    price: float | None = None
    """Of one image, in its unit."""
    usd_price: float | None = None
    unit: str | None = None
    deadline_seconds: float | None = None
    """Set if it may take longer than usual."""
    is_metered: bool = False


@dataclass(frozen=True, kw_only=True)
class Appraiser:
    """Asks providers what they make of orders, once for each shape."""

    catalog: Catalog
    terms: Callable[[str], ProviderTerms]
    """Provider → its terms."""
    _kept: dict[tuple[Any, ...], Appraisal] = field(default_factory=dict)

    def appraise(self, provider: Provider, order: Order, references: int) -> Appraisal:
        """Return what a provider makes of an order. references: the number of its images."""
        params = order.params
        if params.extra or order.turns or len(params.prompt) > self.catalog.shortest_prompt_limit:
            return self._ask(provider, order, references)
        shape = (
            *(provider.name, order.mode, order.priority, references),
            *(params.model, params.aspect_ratio, params.resolution, params.output_format),
            *(params.steps is None, params.seed is None),
        )
        known = self._kept.get(shape)
        if known is None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            known = self._kept[shape] = self._ask(provider, order, references)
        return known

    def _ask(self, provider: Provider, order: Order, references: int) -> Appraisal:
        obstacle = _find_obstacle(provider, order, references)
        if obstacle is not None:
            return Appraisal(provider=provider.name, obstacle=obstacle)
        offer, terms = provider.build_request(order, None), self.terms(provider.name)
        price, rate = offer.get("price"), terms.usd_per_unit
        return Appraisal(
            provider=provider.name,
            obstacle=None,
            ignored=provider.ignored(order),
            price=price,
            usd_price=None if price is None or rate is None else float(price * rate),
            unit=offer.get("unit"),
            deadline_seconds=offer.get("deadline_seconds"),
            is_metered=terms.is_metered,
        )


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


def _find_obstacle(provider: Provider, order: Order, references: int) -> Obstacle | None:
    if not provider.supports(order.params.model):
        text = f"{provider.name} does not serve {order.params.model}."
        return "unsupported_parameter", FieldError(field="model", message=text)
    shown = references if provider.keeps_history else references - len(order.past_positions)
    return provider.find_obstacle(order, shown)
