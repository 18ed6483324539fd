"""Quotas of owners: images and USD per UTC day, images in flight, pins and stored bytes, over all processes.

They bind users and API keys without a user; what the operator's own keys and calls order has none. The defaults are
settings (BROKER_USER_…), and an admin sets others for a user (`users.quota`).

A request is checked before its work (`check`), for the sake of the error, and again by statements of its transaction
(`reserve_order`, `reserve_room`), which decide: they raise `Stale` if its needs do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from broker.accounts.quotas import (
    FIELD_OF,
    QUOTA_NAMES,
    QuotaExceeded,
    QuotaName,
    QuotaState,
    make_limits,
)
from broker.clock import Clock, iso
from broker.errors import ApiError
from broker.orders import Quote
from storage.accounts.users import Users
from storage.ids import USER_ID
from storage.ledger import SECONDS_PER_DAY
from storage.limits.budgets import MICROS_PER_USD, day_of, to_micros
from storage.limits.owner_usage import MIN_STORED_BYTES, OwnerLimits, OwnerUsage, OwnerUse
from storage.limits.rate_limits import RateLimits
from storage.sql.database import Statement
from storage.sql.scope import is_private

RETRY_SECONDS: Final = 5.0
"""`Retry-After` while too many images are in flight: how soon one may end."""
ONE_PIN: Final = OwnerUse(pins=1)


@dataclass(frozen=True, kw_only=True)
class OrderNeeds:
    """The needs of an order: `use`, and whether its price is known. Without a price it fits in no limit of USD."""

    use: OwnerUse
    is_priced: bool

    @classmethod
    def from_quotes(cls, quotes: Sequence[Quote], reference_bytes: int) -> OrderNeeds:
        """Return the needs of orders with these quotes. reference_bytes: as far as they are known."""
        images = sum(quote.count for quote in quotes)
        return cls(
            use=OwnerUse(
                images=images,
                micros=sum(micros_of_image(quote) * quote.count for quote in quotes),
                in_flight=images,
                stored_bytes=max(reference_bytes, MIN_STORED_BYTES),
            ),
            is_priced=all(quote.max_house_usd is not None for quote in quotes),
        )


@dataclass(frozen=True, kw_only=True)
class OwnerQuotas:
    """The quotas of all owners."""

    clock: Clock
    users: Users
    usage: OwnerUsage
    rows: RateLimits
    """Has the row of each owner that is locked while something is counted."""
    defaults: OwnerLimits

    async def read_pin_limit(self, owner: str) -> int | None:
        """Return how many tasks an owner may keep beyond retention; None: any number."""
        return (await self.read_limits(owner)).pins

    async def read_limits(self, owner: str) -> OwnerLimits:
        """Return the limits of an owner as they are now."""
        if not is_private(owner):
            return OwnerLimits()
        user = await self.users.get(owner) if USER_ID.fullmatch(owner) else None
        return self.defaults if user is None else make_limits(user.quota, instead_of=self.defaults)

    async def read_state(self, owner: str) -> dict[QuotaName, QuotaState]:
        """Return every quota of an owner; empty for the operator, who has none."""
        if not is_private(owner):
            return {}
        limits, day = await self.read_limits(owner), day_of(self.clock.now())
        used = await self.usage.read_use(owner, day)
        return {name: _state(name, used, limits, day) for name in QUOTA_NAMES}

    async def read_left_micros(self, owner: str) -> int | None:
        """Return what orders of today can still cost, in millionths of a USD; None without a limit."""
        limit = (await self.read_limits(owner)).micros
        if limit is None:
            return None
        return max(0, limit - (await self.usage.read_use(owner, day_of(self.clock.now()), ["micros"])).micros)

    async def check(self, owner: str, needs: OwnerUse, *, at: float | None = None, is_priced: bool = True) -> None:
        """Raise `QuotaExceeded` if what an owner needs does not fit. at: the moment whose day counts, now if None."""
        limits, day = await self.read_limits(owner), day_of(self.clock.now() if at is None else at)
        limited = [name for name in QUOTA_NAMES if getattr(limits, FIELD_OF[name]) is not None]
        if not limited:
            return
        if "usd" in limited and not is_priced:
            raise ApiError(
                "quota_exceeded",
                "The price of this order is not known, so it cannot be reserved in your quota of USD per day: choose "
                "a model and a provider with a price in GET /api/models.",
            )
        needed = [name for name in limited if getattr(needs, FIELD_OF[name])]
        used = await self.usage.read_use(owner, day, [FIELD_OF[name] for name in needed])
        for name in needed:
            state, need = _state(name, used, limits, day), getattr(needs, FIELD_OF[name])
            if need > max(0, getattr(limits, FIELD_OF[name]) - getattr(used, FIELD_OF[name])):
                raise self._refusal(state, _shown(name, need))

    async def check_order(self, owner: str, needs: OrderNeeds, *, at: float | None = None) -> None:
        """Raise `ApiError("quota_exceeded")` if an order does not fit. at: as in `check`."""
        await self.check(owner, needs.use, at=at, is_priced=needs.is_priced)

    async def reserve_order(self, owner: str, needs: OrderNeeds, created_at: float) -> list[Statement]:
        """Return the statements that reserve an order, created at a moment; `Stale` if it does not fit.

        They belong into the transaction that creates its tasks, behind `RateLimiter.acquire`, which locks the owner's
        row. Empty for the operator. Without limits, the usage is counted all the same: limits may be set later.
        """
        if not is_private(owner):
            return []
        limits = await self.read_limits(owner)
        if limits.micros is not None and not needs.is_priced:
            limits = OwnerLimits(images=0)  # the limit was set after the check, which is made again after `Stale`
        return [
            *self.usage.require_room(owner, needs.use, limits),
            self.usage.reserve(owner, day_of(created_at), needs.use, limits),
        ]

    async def reserve_room(self, owner: str, needs: OwnerUse, *, freeing: Sequence[Statement] = ()) -> list[Statement]:
        """Return the statements before one that adds to what is stored or pinned; `Stale` if it does not fit.

        freeing: statements of the same transaction that make room first; they are among those returned.
        """
        room = self.usage.require_room(owner, needs, await self.read_limits(owner))
        return [self.rows.lock_usage(owner), *freeing, *room] if room else [*freeing]

    def shares_of_task(self, owner: str, quote: Quote) -> tuple[int, int] | tuple[None, None]:
        """Return the images and the amount that each task of an order reserves; None for the operator's."""
        return (1, micros_of_image(quote)) if is_private(owner) else (None, None)

    def _refusal(self, state: QuotaState, need: int | float) -> QuotaExceeded:
        needed, limit, left = (_in_words(amount or 0) for amount in (need, state.limit, state.left))
        unit = _UNITS[state.name]
        if not state.limit:
            return QuotaExceeded(f"Your quota is 0 {unit}: ask the operator for more.", state, retry_after=None)
        if need > state.limit:
            text = f"This needs {needed}, more than your whole quota of {limit} {unit}: {_SMALLER[state.name]}."
            return QuotaExceeded(text, state, retry_after=None)
        text = f"This needs {needed}, and {left} of your quota of {limit} {unit} are left."
        if state.resets_at is not None:
            wait = max(1.0, state.resets_at - self.clock.now())
            return QuotaExceeded(f"{text} It resets at {iso(state.resets_at)}.", state, retry_after=wait)
        wait_for_end = RETRY_SECONDS if state.name == "in_flight" else None
        return QuotaExceeded(f"{text} {_CURES[state.name]}", state, retry_after=wait_for_end)


def micros_of_image(quote: Quote) -> int:
    """Return the most that one image of an order can cost, in millionths of a USD; 0 if that is not known."""
    return to_micros(quote.max_house_usd or 0.0)


_UNITS: Final[Mapping[QuotaName, str]] = {
    "images": "images per day",
    "usd": "USD per day",
    "in_flight": "images in work at the same time",
    "pins": "pinned tasks",
    "bytes": "stored bytes",
}
_CURES: Final[Mapping[QuotaName, str]] = {
    "in_flight": "Wait until one has ended.",
    "pins": "Unpin another task first.",
    "bytes": "Delete images or files that you no longer need, or wait until they expire.",
}
_SMALLER: Final[Mapping[QuotaName, str]] = {
    "images": "order fewer images",
    "usd": "order fewer or smaller images",
    "in_flight": "order fewer images at once",
    "pins": "unpin other tasks",
    "bytes": "send smaller images",
}


def _state(name: QuotaName, used: OwnerUse, limits: OwnerLimits, day: int) -> QuotaState:
    limit, amount = getattr(limits, FIELD_OF[name]), getattr(used, FIELD_OF[name])
    return QuotaState(
        name=name,
        limit=None if limit is None else _shown(name, limit),
        used=_shown(name, amount),
        left=None if limit is None else _shown(name, max(0, limit - amount)),
        resets_at=float((day + 1) * SECONDS_PER_DAY) if name in {"images", "usd"} else None,
    )


def _shown(name: QuotaName, amount: int) -> int | float:
    return amount / MICROS_PER_USD if name == "usd" else amount


def _in_words(amount: int | float) -> str:
    return f"{amount:,.6f}".rstrip("0").rstrip(".") if isinstance(amount, float) else f"{amount:,}"
