"""Routing of queued orders: which providers take orders now, and where an order goes after a failure.

Money decides: an order goes on only after an attempt that certainly cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.cache import TtlCache
from broker.clock import Clock
from broker.providers.pool import ProviderPool
from broker.reports import Failed
from storage.limits.provider_limits import ProviderLimits
from storage.tasks import Task

PAUSED: Final = "paused"
"""Reason of a provider that an operator paused."""
STATUS_SECONDS: Final = 0.5
"""Age at which the status of the providers is read again."""


@dataclass(frozen=True, kw_only=True)
class ProviderStatus:
    """Whether a provider takes orders now."""

    usable_keys: tuple[str, ...]
    """Key ids that are not in cooldown, the preferred one first."""
    reason: str | None = None
    """Why it takes none: `paused` by an operator, or the task error code of its cooldown; None if it takes orders."""

    @property
    def is_available(self) -> bool:
        return self.reason is None


@dataclass(kw_only=True)
class Router:
    """Knows the status of every configured provider, shared by all processes through the database."""

    clock: Clock
    limits: ProviderLimits
    pools: Mapping[str, ProviderPool]
    _statuses: TtlCache[Mapping[str, ProviderStatus]] = field(init=False)

    def __post_init__(self) -> None:
        self._statuses = TtlCache(self._load_statuses, seconds=STATUS_SECONDS, clock=self.clock)

    async def statuses(self) -> Mapping[str, ProviderStatus]:
        """Return the status of each configured provider, at most half a second old."""
        return await self._statuses.get()

    def expire_statuses(self) -> None:
        """Read the statuses again at the next request, because this process has changed one."""
        self._statuses.expire()

    async def find_onward(self, task: Task, failure: Failed) -> tuple[str, ...]:
        """Return the providers to which an order can go after a failure, the next one first; empty if to none.

        A provider that refused for good is left out; one that may recover is last.
        """
        if not failure.another_may_serve:
            return ()
        statuses = await self.statuses()
        if failure.is_account_error and task.provider in self.pools:
            usable = statuses[task.provider].usable_keys if statuses[task.provider].reason != PAUSED else ()
            if any(key_id != task.key_id for key_id in usable):
                return task.candidates or (task.provider,)
        may_recover = failure.is_account_error or (failure.retryable and not failure.cannot_serve)
        return _onward(task, statuses, keep=may_recover)

    async def find_other(self, task: Task) -> tuple[str, ...]:
        """Return the providers of an order after an unknown outcome: another one that takes orders first, if any."""
        return _onward(task, await self.statuses(), keep=True)

    async def find_available(self, task: Task) -> tuple[str, ...]:
        """Return the providers of a queued order if its own takes none now and another does; else empty.

        A provider that is no longer configured is left out.
        """
        statuses = await self.statuses()
        own = statuses.get(task.provider)
        return () if own is not None and own.is_available else _onward(task, statuses, keep=own is not None)

    async def _load_statuses(self) -> Mapping[str, ProviderStatus]:
        now, paused = self.clock.now(), await self.limits.paused_providers()
        cooldowns = {(one.provider, one.key_id): one for one in await self.limits.list_cooldowns(now)}
        statuses = {}
        for name, pool in self.pools.items():
            usable = tuple(key_id for key_id in pool.accounts if (name, key_id) not in cooldowns)
            reasons = [cooldowns[name, key_id].reason for key_id in pool.accounts if key_id not in usable]
            reason = PAUSED if name in paused else None if usable else reasons[0]
            statuses[name] = ProviderStatus(usable_keys=usable, reason=reason)
        return statuses


def _onward(task: Task, statuses: Mapping[str, ProviderStatus], *, keep: bool) -> tuple[str, ...]:
    """Return the candidates with the first available other one in front. keep: the current one stays, as the last."""
    others = [name for name in task.candidates if name != task.provider]
    chosen = next((name for name in others if name in statuses and statuses[name].is_available), None)
    if chosen is None:
        return ()
    rest = [name for name in others if name != chosen]
    return (chosen, *rest, *([task.provider] if keep else []))
