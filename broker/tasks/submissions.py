"""Submissions by provider: how many orders it gets now, when the next one, and the circuit breaker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from broker.clock import Clock
from broker.providers.base import Provider
from broker.providers.pool import ProviderPool
from broker.providers.responses import MAX_WAIT_SECONDS
from broker.reports import Failed, Report
from broker.tasks.accounts.lanes import Lanes
from broker.tasks.accounts.pools import ProviderAccounts
from broker.tasks.policy import TaskPolicy, backoff_seconds, doubled_seconds
from broker.tasks.routing import Router
from broker.tasks.running import SlotUse
from storage.ids import is_own_account, provider_of
from storage.limits.provider_limits import (
    MAX_COOLDOWN_SECONDS,
    PROBE_SECONDS,
    SET_ASIDE_REASONS,
    AccountLimits,
    Capacity,
)
from storage.tables import Tables
from storage.tasks import Lease, Task

MAX_UNKNOWN_IN_A_ROW: Final = 5
OPEN_SECONDS: Final = 30.0
SET_ASIDE_SECONDS: Final = 600.0
"""First pause of a key that only the operator can repair; doubles with each further refusal."""
HELD_SECONDS: Final = 660.0
"""Longest time of a submission that waits for the result."""


@dataclass(frozen=True, kw_only=True)
class SubmissionQueue:
    """The queued orders of each account, within the limits of its keys."""

    clock: Clock
    tables: Tables
    accounts: ProviderAccounts
    router: Router
    lanes: Lanes

    async def claim(self, account: str, lease: Lease, *, limit: int) -> list[Task]:
        """Claim queued orders for which an account has capacity, or which another one can take instead.

        Of an account that was removed: all that are due, to be moved or failed.
        """
        pool, now, queue = await self.accounts.find_pool(account), self.clock.now(), self.tables.task_queue
        if pool is None or pool.is_removed:
            return await queue.claim(account, now=now, lease=lease, limit=limit)
        capacity = await self._get_capacity(pool)
        if capacity.free or capacity.is_paused:
            self.lanes.forget_full(account)
        else:
            self.lanes.record_full(account, until=capacity.recheck_at)
        if not capacity.is_paused:
            claimed = await queue.claim(account, now=now, lease=lease, limit=min(capacity.free, limit))
        else:
            others = await self._find_others(account)
            claimed = await queue.claim_movable(account, others, now=now, lease=lease, limit=limit) if others else []
        if is_own_account(account) and not claimed and limit:
            self.lanes.pause(account, until=capacity.recheck_at)
        return claimed

    async def claim_orphans(self, lease: Lease, *, limit: int) -> list[Task]:
        """Claim queued orders whose provider is no longer configured, and which another provider can take."""
        queue, now, house = self.tables.task_queue, self.clock.now(), list(self.accounts.house)
        orphaned = [name for name in await queue.list_providers() if name not in house and not is_own_account(name)]
        claims = [await queue.claim_movable(name, house, now=now, lease=lease, limit=limit) for name in orphaned]
        return [task for tasks in claims for task in tasks]

    async def has_capacity(self, account: str, count: int) -> bool:
        """Return whether an account of the operator takes so many orders now."""
        pool = self.accounts.house.get(account)
        return pool is not None and (await self._get_capacity(pool)).free >= count

    async def next_at(self, account: str, queued_at: float) -> float:
        """Return the moment of the next submission. queued_at: when the first order is due; infinite without one.

        For accounts of users `queued_at` has it: `lanes` leaves out those without capacity.
        """
        pool = self.accounts.house.get(account)
        if math.isinf(queued_at) or pool is None:
            return queued_at
        capacity = await self._get_capacity(pool)
        return max(queued_at, self.clock.now() if capacity.free else capacity.recheck_at)

    def slots_of(self, account: str) -> SlotUse:
        """Return whose slots the submissions of an account take."""
        holds = self.accounts.holds_submit(provider_of(account))
        own = account if is_own_account(account) else ""
        return SlotUse(held_by=account if holds else "", account=own)

    async def choose_account(self, account: str) -> Provider | None:
        """Return the key with the most capacity; None if there is none with any.

        If every key waits for the operator, the first one: its refusal ends the order at once and with the reason.
        """
        pool = await self.accounts.find_pool(account)
        if pool is None or not pool.accounts:
            return None
        if len(pool.accounts) == 1:
            return pool.preferred  # the reservation decides
        capacities = await self._get_capacities(pool)
        key_id, best = max(capacities.items(), key=lambda item: item[1].free)
        if best.free:
            return pool.accounts[key_id]
        return pool.preferred if all(one.is_set_aside for one in capacities.values()) else None

    async def _find_others(self, account: str) -> list[str]:
        """Return the accounts that take orders now and may be candidates of an order of this one."""
        siblings = await self.accounts.list_siblings(account) if is_own_account(account) else []
        statuses = {**await self.router.statuses(), **await self.router.statuses_of(siblings)}
        return [name for name, status in statuses.items() if name != account and status.is_available]

    async def _get_capacity(self, pool: ProviderPool) -> Capacity:
        """Return the capacity of all keys of an account together."""
        if not pool.accounts or await self.router.is_paused(provider_of(pool.name)):
            return Capacity(free=0, is_paused=True)
        capacities = (await self._get_capacities(pool)).values()
        free = sum(one.free for one in capacities)
        if not free and all(one.is_set_aside for one in capacities):
            return Capacity(free=1)  # an order moves on, or is refused at once and with the reason
        return Capacity(
            free=free,
            recheck_at=min(one.recheck_at for one in capacities),
            is_paused=all(one.is_paused for one in capacities),
        )

    async def _get_capacities(self, pool: ProviderPool) -> dict[str, Capacity]:
        now = self.clock.now()
        return {
            key_id: await self.tables.provider_limits.get_capacity(pool.name, key_id, account_limits(account), now)
            for key_id, account in pool.accounts.items()
        }


def account_limits(provider: Provider) -> AccountLimits:
    submit_seconds = HELD_SECONDS if provider.holds_submit else PROBE_SECONDS
    return AccountLimits(
        creates_per_window=provider.creates_per_10s, concurrency=provider.concurrency, submit_seconds=submit_seconds
    )


@dataclass(frozen=True, kw_only=True)
class CooldownDecision:
    """Nothing is submitted with a key until then. reason: task error code."""

    until: float
    reason: str


def decide_cooldown(report: Report | None, failures: int, now: float, policy: TaskPolicy) -> CooldownDecision | None:
    """Return the cooldown after a submission; None closes the circuit.

    report: response to a submission, None if its outcome is unknown. failures: failed submissions in a row before
    this one. An account error opens the circuit at once. A single unknown outcome does not, only a row of them: the
    provider is down then, and each further submission may cost money. A key that is wrong or has no credits left is
    set aside for minutes, because only the operator can change that; a real order is the probe afterwards.
    """
    if report is None:
        until = now + OPEN_SECONDS if failures + 1 >= MAX_UNKNOWN_IN_A_ROW else now
        return CooldownDecision(until=until, reason="provider_unavailable")
    if not isinstance(report, Failed) or not report.is_account_error or report.job_id is not None:
        return None
    if report.code in SET_ASIDE_REASONS:
        seconds = doubled_seconds(SET_ASIDE_SECONDS, failures, MAX_COOLDOWN_SECONDS - 1)
        return CooldownDecision(until=now + seconds, reason=report.code)
    if not report.retryable:
        return None
    wait = min(report.retry_in or 0.0, MAX_WAIT_SECONDS)
    return CooldownDecision(until=now + max(wait, backoff_seconds(failures, policy)), reason=report.code)
