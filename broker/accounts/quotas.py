"""Quotas of owners: their names, what an admin sets instead of the defaults, and the error of one that is used up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from broker.errors import ApiError
from storage.limits.budgets import to_micros
from storage.limits.owner_usage import NO_LIMIT, OwnerLimits

QuotaName = Literal["images", "usd", "in_flight", "pins", "bytes"]
"""images, usd: of a UTC day. in_flight: images that are not ready. pins: tasks that are kept. bytes: stored."""

QuotaLimit = int | float | Literal["unlimited"] | None
"""As settings and `User.quota` hold it; of usd it may have a fraction. None: no limit, too."""

QUOTA_NAMES: Final[tuple[QuotaName, ...]] = get_args(QuotaName)

FIELD_OF: Final[Mapping[QuotaName, str]] = {
    "images": "images",
    "usd": "micros",
    "in_flight": "in_flight",
    "pins": "pins",
    "bytes": "stored_bytes",
}
"""Quota → field of `OwnerLimits` and `OwnerUse`."""


@dataclass(frozen=True, kw_only=True)
class QuotaState:
    """One quota of an owner. limit, left: None without a limit. resets_at: seconds since the epoch, of a daily one."""

    name: QuotaName
    limit: int | float | None
    used: int | float
    left: int | float | None
    resets_at: float | None


class QuotaExceeded(ApiError):
    """A request needs more than is left of a quota. state: what is left."""

    def __init__(self, message: str, state: QuotaState, *, retry_after: float | None) -> None:
        super().__init__(
            "quota_exceeded",
            message,
            retryable=retry_after is not None,
            retry_after=retry_after,
            message_key=f"quota_{state.name}",
        )
        self.state = state


def make_limits(values: Mapping[str, QuotaLimit], *, instead_of: OwnerLimits | None = None) -> OwnerLimits:
    """Return limits in which those named by `values` are set; names that are none are ignored."""
    known: Any = {FIELD_OF[name]: _to_amount(name, values[name]) for name in QUOTA_NAMES if name in values}
    return replace(instead_of or OwnerLimits(), **known)


def _to_amount(name: QuotaName, limit: QuotaLimit) -> int | None:
    if limit is None or limit == "unlimited":
        return None
    return min(to_micros(limit) if name == "usd" else int(limit), NO_LIMIT)
