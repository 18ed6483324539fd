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
from broker.ordering.appraisals import Appraisal, Obstacle, PriceTable
from broker.ordering.budgets import DailyBudget
from broker.ordering.quotas import OwnerQuotas
from broker.orders import Order, Route, RoutePolicy
from broker.tasks.routing import PAUSED, ProviderStatus, Router
from storage.ids import is_own_account, provider_of
from storage.limits.budgets import to_micros

_STATUS_SENTENCES: Final = {
    PAUSED: "paused by the operator",
    "provider_auth": "it refused every key",
    "provider_credits": "its account is empty",
    "provider_rate_limited": "it limits the rate of orders now",
    "provider_unavailable": "it does not answer",
}

BUDGET: Final = "daily budget"
QUOTA: Final = "quota of USD per day"
"""What the price of an order must fit in."""


@dataclass(frozen=True, kw_only=True)
class OrderRouter:
    """Finds the accounts that may get a new order."""

    router: Router
    prices: PriceTable
    budget: DailyBudget
    quotas: OwnerQuotas
    policy: RoutePolicy
    """`order`: as configured; `price`: the cheapest first. Either way the accounts of the owner's own come first."""

    async def find_routes(
        self,
        owner: str,
        order: Order,
        appraisals: Mapping[str, Appraisal],
        *,
        count: int,
        pinned: str | None,
        reserved: Mapping[str, int] | None = None,
    ) -> tuple[Route, ...]:
        """Return a route for every account that an owner can use, candidates first, best first.

        appraisals: by account, in order of preference. count: of images. pinned: the only provider that may get it.
        reserved: of an order that was created before, what it has reserved in
        `BUDGET` and `QUOTA` and may not exceed. Raises `ApiError` if there is no candidate, for the reason of the
        preferred account.
        """
        names = list(dict.fromkeys(map(provider_of, appraisals)))
        if pinned is not None and pinned not in names:
            raise ApiError(
                "unsupported_parameter",
                f"No provider {quote_text(pinned)} is in use. Accepted: {', '.join(names)}.",
                field="provider",
            )
        obstacles = {account: one.obstacle for account, one in appraisals.items()}
        if pinned is not None:
            not_chosen = FieldError(field="provider", message=f"the request names {pinned}")
            obstacles = {
                account: found if provider_of(account) == pinned else ("unsupported_parameter", not_chosen)
                for account, found in obstacles.items()
            }
        able = {account: appraisals[account] for account, obstacle in obstacles.items() if obstacle is None}
        if not able:
            chosen_ones = [found for account, found in obstacles.items() if pinned in {None, provider_of(account)}]
            raise _refusal(order, names, chosen_ones)
        obstacles |= (too_dear := await self._find_unaffordable(owner, able, count, reserved))
        able = {account: one for account, one in able.items() if account not in too_dear}
        if not able:
            raise ApiError("quota_exceeded", "This order costs more now than it has reserved: send it again.")
        statuses = await self.router.statuses_of(appraisals)
        chosen = _prefer_complete(able)
        ranked = sorted(chosen, key=lambda name: (_takes_none(statuses, name), *self._rank(name, appraisals)))
        return (
            *(Route(provider=name, is_candidate=True, reason=_status_reason(statuses.get(name))) for name in ranked),
            *(
                Route(provider=name, is_candidate=False, reason=_reason(obstacle, appraisals[name]))
                for name, obstacle in obstacles.items()
                if name not in chosen
            ),
        )

    async def _find_unaffordable(
        self,
        owner: str,
        able: Mapping[str, Appraisal],
        count: int,
        reserved: Mapping[str, int] | None,
    ) -> dict[str, Obstacle]:
        """Return those whose price does not fit in budget and quota, if another's does; else those without a price.

        If no price is known or fits, none: the order is refused when it is created, unless it repeats an earlier one.
        Of an order that was created, all that do not fit in what it has reserved.
        Accounts of the owner's own cost the operator nothing, so they always fit.
        """
        if len(able) == 1 and reserved is None:
            return {}  # nothing to choose; whether it fits is decided when the order is created
        lefts = await self._read_lefts(owner)
        if reserved is not None:
            lefts = {name: reserved[name] for name in lefts if name in reserved}
        if not lefts:
            return {}
        limit = min(lefts, key=lambda name: lefts[name])
        house = {name: one for name, one in able.items() if not is_own_account(name)}
        prices = {name: self.prices.max_usd_price([one]) for name, one in house.items()}
        priced = {name: price for name, price in prices.items() if price is not None}
        fitting = [name for name, price in priced.items() if to_micros(price) * count <= lefts[limit]]
        has_own = len(house) < len(able)
        kept = fitting if fitting or has_own or reserved is not None else list(priced) or list(house)
        reasons = {
            name: f"its price does not fit in what is left of the {limit}"
            if name in priced
            else f"its price is not known, so it cannot be reserved in the {limit}"
            for name in house
            if name not in kept
        }
        return {
            name: ("quota_exceeded", FieldError(field="provider", message=reason)) for name, reason in reasons.items()
        }

    async def _read_lefts(self, owner: str) -> dict[str, int]:
        """Return what is left of each limit that an order must fit in, in millionths of a USD."""
        budget, quota = await self.budget.read_state(), await self.quotas.read_left_micros(owner)
        lefts = {BUDGET: budget.left_micros if budget else None, QUOTA: quota}
        return {name: left for name, left in lefts.items() if left is not None}

    def _rank(self, name: str, appraisals: Mapping[str, Appraisal]) -> tuple[bool, float, int]:
        is_house, position = not is_own_account(name), list(appraisals).index(name)
        if self.policy == "order":
            return is_house, 0.0, position
        price = appraisals[name].usd_price
        return is_house, math.inf if price is None else price, position


def _prefer_complete(able: Mapping[str, Appraisal]) -> list[str]:
    """Return those that ignore the fewest parameters."""
    fewest = min(len(one.ignored) for one in able.values())
    return [name for name, one in able.items() if len(one.ignored) == fewest]


def _reason(obstacle: Obstacle | None, appraisal: Appraisal) -> str:
    if obstacle is not None:
        return obstacle[1].message
    return f"it would ignore {', '.join(appraisal.ignored)}"


def _refusal(order: Order, names: Sequence[str], obstacles: Sequence[Obstacle | None]) -> ApiError:
    """Return the error of an order without a candidate: of the first account that has the model, if any has."""
    found = [one for one in obstacles if one is not None]
    code, error = next((one for one in found if one[1].field != "model"), found[0])
    message = error.message
    if error.field == "model" and len(names) > 1 and len(found) > 1:
        message = f"No provider in use ({', '.join(names)}) serves {order.params.model}."
    return ApiError(code, message, field=error.field)


def _takes_none(statuses: Mapping[str, ProviderStatus], name: str) -> bool:
    """Return whether an account takes no orders now; one that has just been removed does not."""
    return name not in statuses or not statuses[name].is_available


def _status_reason(status: ProviderStatus | None) -> str | None:
    if status is None or status.reason is None:
        return None
    return _STATUS_SENTENCES.get(status.reason, status.reason)
