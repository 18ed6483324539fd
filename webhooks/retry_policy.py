"""The retry policy of webhooks: what a receiver's response means for a delivery. Pure.

pending ──► delivered   2xx
  │   ├──► gone         410: the receiver is closed for good
  │   └──► failed       the schedule or the retention time is over; kept, and can be redelivered
  └─ anything else: another attempt, one step later
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from storage.deliveries import DeliveryStatus
from webhooks.retry_after import parse_retry_after

RETRY_SCHEDULE: Final = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)
"""Seconds before each retry: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h."""
JITTER: Final = 0.1
"""Largest share of a pause that is added at random, so that a recovered receiver does not meet every sender at once."""
MAX_EXTRA_WAIT_SECONDS: Final = 3600.0
"""How far a receiver's Retry-After may extend a pause of the schedule."""

_RETRY_AFTER_STATUSES: Final = frozenset({429, 503})


@dataclass(frozen=True, kw_only=True)
class ReceiverResponse:
    """The outcome of one attempt."""

    status: int | None = None
    """HTTP status; None without a response."""
    retry_after: str | None = None
    """The Retry-After header as received."""
    error: str | None = None
    """Reason of a missing response."""


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """The state of a delivery after an attempt."""

    outcome: DeliveryStatus
    due_at: float | None = None
    """When the next attempt is due, in seconds since the epoch; None without one."""
    reason: str | None = None


def next_step(
    schedule_step: int, response: ReceiverResponse, now: float, random: Callable[[], float], expires_at: float
) -> NextStep:
    """Decide what follows from an attempt.

    schedule_step: attempts on this schedule so far, this one included. expires_at: end of the task's retention; no
    attempt is due later.
    """
    if response.status is not None and 200 <= response.status < 300:
        return NextStep(outcome=DeliveryStatus.DELIVERED)
    reason = _reason(response)
    if response.status == 410:
        return NextStep(outcome=DeliveryStatus.GONE, reason=reason)
    if schedule_step <= len(RETRY_SCHEDULE):
        pause = RETRY_SCHEDULE[schedule_step - 1]
        requested = parse_retry_after(response.retry_after, now) if response.status in _RETRY_AFTER_STATUSES else None
        pause = max(pause * (1 + JITTER * random()), min(requested or 0.0, pause + MAX_EXTRA_WAIT_SECONDS))
        if now + pause < expires_at:
            return NextStep(outcome=DeliveryStatus.PENDING, due_at=now + pause, reason=reason)
    return NextStep(outcome=DeliveryStatus.FAILED, reason=reason)


def _reason(response: ReceiverResponse) -> str:
    if response.status is None:
        return response.error or "no response"
    if 300 <= response.status < 400:
        return f"HTTP {response.status}: redirects are not followed"
    return f"HTTP {response.status}"
