"""Submissions by provider: how many orders it gets now, when the next one, and the circuit breaker."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.clock import Clock
from broker.providers.base import Provider
from broker.reports import Failed, Report
from broker.tasks.policy import TaskPolicy, backoff_seconds
from storage.provider_limits import AccountLimits, Capacity
from storage.tables import Tables
from storage.tasks import Lease, Task

ACCOUNT_ERROR_CODES: Final = frozenset({"provider_rate_limited", "provider_unavailable"})
"""Errors that concern the whole account, not one order."""
MAX_UNKNOWN_IN_A_ROW: Final = 5
OPEN_SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class SubmissionQueue:
    """The queued orders of each provider, within its limits."""

    clock: Clock
    tables: Tables
    providers: Mapping[str, Provider]

    async def claim(self, provider: str, lease: Lease, *, limit: int) -> list[Task]:
        """Claim queued orders for which the provider has capacity."""
        capacity = await self._get_capacity(provider)
        limit = min(capacity.free, limit)
        return await self.tables.tasks.claim_queued(provider, now=self.clock.now(), lease=lease, limit=limit)

    async def next_at(self, provider: str, queued_at: float) -> float:
        """Return the moment of the next submission. queued_at: when the first order is due; infinite without one."""
        if math.isinf(queued_at):
            return queued_at
        capacity = await self._get_capacity(provider)
        return max(queued_at, self.clock.now() if capacity.free else capacity.recheck_at)

    async def _get_capacity(self, provider: str) -> Capacity:
        limits = account_limits(self.providers[provider])
        return await self.tables.provider_limits.get_capacity(provider, limits, self.clock.now())


def account_limits(provider: Provider) -> AccountLimits:
    return AccountLimits(creates_per_window=provider.creates_per_10s, concurrency=provider.concurrency)


def cooldown_until(report: Report | None, failures: int, now: float, policy: TaskPolicy) -> float | None:
    """Return the moment until which nothing is submitted; None closes the circuit.

    report: response to a submission, None if its outcome is unknown. failures: failed submissions in a row before
    this one. An account error opens the circuit at once. A single unknown outcome does not, only a row of them: the
    provider is down then, and each further submission may cost money.
    """
    if report is None:
        return now + OPEN_SECONDS if failures + 1 >= MAX_UNKNOWN_IN_A_ROW else now
    if isinstance(report, Failed) and report.retryable and report.code in ACCOUNT_ERROR_CODES:
        return now + max(report.retry_in or 0.0, backoff_seconds(failures, policy))
    return None
