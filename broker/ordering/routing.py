"""Routing of new orders: which of the configured providers can serve one, best first, and why the others cannot.

No parameter is dropped silently: a provider that cannot take a parameter is a candidate only if no other can, and then
the parameter is listed as ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from broker.catalog import quote_text
from broker.errors import ApiError, FieldError
from broker.ordering.budgets import DailyBudget
from broker.ordering.pricing import PriceTable
from broker.orders import Order, Route, RoutePolicy
from broker.providers.base import Provider
from broker.tasks.routing import PAUSED, ProviderStatus, Router
from storage.limits.budgets import to_micros

_STATUS_SENTENCES: Final = {
    PAUSED: "paused by the operator",
    "provider_auth": "it refused every key",
    "provider_credits": "its account is empty",
    "provider_rate_limited": "it limits the rate of orders now",
    "provider_unavailable": "it does not answer",
}


@dataclass(frozen=True, kw_only=True)
class OrderRouter:
    """Finds the providers of a new order."""

    providers: Mapping[str, Provider]
    """In order of preference."""
    router: Router
    prices: PriceTable
    budget: DailyBudget
    policy: RoutePolicy
    """`order`: as configured; `price`: the cheapest first."""

    async def find_routes(self, order: Order, *, references: int, count: int, pinned: str | None) -> tuple[Route, ...]:
        """Return a route for every configured provider, candidates first, best first.

        references: number of reference images. count: of images. pinned: the only provider that may get it. Raises
        `ApiError` if there is no candidate, for the reason of the preferred provider.
        """
        if pinned is not None and pinned not in self.providers:
            names = ", ".join(self.providers)
            raise ApiError(
                "unsupported_parameter",
                f"No provider {quote_text(pinned)} is in use. Accepted: {names}.",
                field="provider",
            )
        obstacles = {name: self._find_obstacle(name, order, references) for name in self.providers}
        if pinned is not None:
            not_chosen = FieldError(field="provider", message=f"the request names {pinned}")
            obstacles = {
                name: found if name == pinned else ("unsupported_parameter", not_chosen)
                for name, found in obstacles.items()
            }
        able = [name for name, obstacle in obstacles.items() if obstacle is None]
        if not able:
            raise self._refusal(order, [obstacles[pinned]] if pinned else list(obstacles.values()))
        obstacles |= (too_dear := await self._find_unaffordable(able, order, count))
        able = [name for name in able if name not in too_dear]
        statuses = await self.router.statuses()
        chosen = self._prefer_complete(able, order)
        ranked = sorted(chosen, key=lambda name: (not statuses[name].is_available, self._rank(name, order)))
        return (
            *(Route(provider=name, is_candidate=True, reason=_status_reason(statuses[name])) for name in ranked),
            *(
                Route(provider=name, is_candidate=False, reason=self._reason(name, obstacle, order))
                for name, obstacle in obstacles.items()
                if name not in chosen
            ),
        )

    def _find_obstacle(self, name: str, order: Order, references: int) -> tuple[str, FieldError] | None:
        provider = self.providers[name]
        if not provider.supports(order.params.model):
            text = f"{name} does not serve {order.params.model}."
            return "unsupported_parameter", FieldError(field="model", message=text)
        return provider.find_obstacle(order, references)

    async def _find_unaffordable(
        self, names: Sequence[str], order: Order, count: int
    ) -> dict[str, tuple[str, FieldError]]:
        """Return those whose price does not fit in the daily budget, if another's does; else those without a price.

        If no price is known or fits, none: the order is refused when it is created, unless it repeats an earlier one.
        """
        state = await self.budget.read_state()
        if state is None:
            return {}
        prices = {name: self.prices.max_usd_price([name], order) for name in names}
        priced = {name: price for name, price in prices.items() if price is not None}
        fitting = [name for name, price in priced.items() if to_micros(price) * count <= state.left_micros]
        kept = fitting or list(priced) or names
        reasons = {
            name: "its price does not fit in what is left of the daily budget"
            if name in priced
            else "its price is not known, so it cannot be reserved in the daily budget"
            for name in names
            if name not in kept
        }
        return {
            name: ("quota_exceeded", FieldError(field="provider", message=reason)) for name, reason in reasons.items()
        }

    def _prefer_complete(self, names: Sequence[str], order: Order) -> list[str]:
        """Return those that ignore the fewest parameters."""
        counts = {name: len(self.providers[name].ignored(order)) for name in names}
        return [name for name, count in counts.items() if count == min(counts.values())]

    def _rank(self, name: str, order: Order) -> tuple[float, int]:
        position = list(self.providers).index(name)
        if self.policy == "order":
            return 0.0, position
        price = self.prices.usd_price(name, order)
        return math.inf if price is None else price, position

    def _reason(self, name: str, obstacle: tuple[str, FieldError] | None, order: Order) -> str:
        if obstacle is not None:
            return obstacle[1].message
        return f"it would ignore {', '.join(self.providers[name].ignored(order))}"

    def _refusal(self, order: Order, obstacles: Sequence[tuple[str, FieldError] | None]) -> ApiError:
        """Return the error of an order without a candidate: of the first provider that has the model, if any has."""
        found = [one for one in obstacles if one is not None]
        code, error = next((one for one in found if one[1].field != "model"), found[0])
        message = error.message
        if error.field == "model" and len(found) > 1:
            message = f"No provider in use ({', '.join(self.providers)}) serves {order.params.model}."
        return ApiError(code, message, field=error.field)


def _status_reason(status: ProviderStatus) -> str | None:
    return None if status.reason is None else _STATUS_SENTENCES.get(status.reason, status.reason)
