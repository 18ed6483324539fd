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

QUOTA_NAMES: Final[tuple[QuotaName, ...]] = get_args(QuotaName)

UNLIMITED: Final = "unlimited"
MAX_QUOTA: Final = 1e15
QuotaLimit = int | float | Literal["unlimited"]
"""As an admin sets it for a user (`User.quota`); a name without one has the default of the settings."""

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


def make_limits(values: Mapping[str, QuotaLimit | None], *, instead_of: OwnerLimits | None = None) -> OwnerLimits:
    """Return limits in which those named by `values` are set; None: no limit. Other names are ignored."""
    known: Any = {FIELD_OF[name]: _to_amount(name, values[name]) for name in QUOTA_NAMES if name in values}
    return replace(instead_of or OwnerLimits(), **known)


def _to_amount(name: QuotaName, limit: QuotaLimit | None) -> int | None:
    if limit is None or limit == UNLIMITED:
        return None
    return min(to_micros(limit) if name == "usd" else int(limit), NO_LIMIT)


def merge_quota(before: Mapping[str, QuotaLimit], changes: Mapping[str, QuotaLimit | None]) -> dict[str, QuotaLimit]:
    """Return limits after changes; None restores a default. Raises `ApiError` for a name or a number that is none."""
    for name, limit in changes.items():
        is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if name not in QUOTA_NAMES or not (
            limit is None or limit == UNLIMITED or (is_number and 0 <= limit <= MAX_QUOTA)
        ):
            raise ApiError(
                "invalid_request",
                f"Quotas are {', '.join(QUOTA_NAMES)}: a number from 0, or {UNLIMITED}.",
                field="quota",
            )
    return {name: limit for name, limit in {**before, **changes}.items() if limit is not None}
