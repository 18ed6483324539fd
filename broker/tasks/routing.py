"""Routing of queued orders: which providers take orders now, and where an order goes after a failure.

Money decides: an order goes on only after an attempt that certainly cost nothing.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from broker.cache import TtlCache
from broker.clock import Clock
from broker.providers.pool import ProviderPool
from broker.reports import Failed
from broker.tasks.accounts.pools import ProviderAccounts
from storage.ids import is_own_account, provider_of
from storage.limits.provider_limits import Cooldown, ProviderLimits
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


@dataclass(frozen=True, kw_only=True)
class LimitState:
    """What the database says about some accounts."""

    paused: frozenset[str]
    """Providers that an operator paused."""
    cooldowns: Mapping[tuple[str, str], Cooldown]
    """Of these accounts, by account and key id."""

    def status_of(self, pool: ProviderPool) -> ProviderStatus:
        """Return whether an account takes orders now. One without a key that can be read waits for its user."""
        if provider_of(pool.name) in self.paused:
            return ProviderStatus(usable_keys=self._usable_keys(pool), reason=PAUSED)
        usable = self._usable_keys(pool)
        if usable:
            return ProviderStatus(usable_keys=usable)
        reasons = [self.cooldowns[pool.name, key_id].reason for key_id in pool.accounts]
        return ProviderStatus(usable_keys=(), reason=reasons[0] if reasons else "provider_auth")

    def _usable_keys(self, pool: ProviderPool) -> tuple[str, ...]:
        return tuple(key_id for key_id in pool.accounts if (pool.name, key_id) not in self.cooldowns)


@dataclass(kw_only=True)
class Router:
    """Knows which accounts take orders, shared by all processes through the database."""

    clock: Clock
    limits: ProviderLimits
    accounts: ProviderAccounts
    _state: TtlCache[LimitState] = field(init=False)

    def __post_init__(self) -> None:
        self._state = TtlCache(self._load_state, seconds=STATUS_SECONDS, clock=self.clock)

    async def statuses(self) -> Mapping[str, ProviderStatus]:
        """Return the status of each configured provider, at most half a second old."""
        state = await self._state.get()
        return {name: state.status_of(pool) for name, pool in self.accounts.house.items()}

    async def statuses_of(self, accounts: Iterable[str]) -> Mapping[str, ProviderStatus]:
        """Return the status of these accounts, at most half a second old; those that no longer exist are missing.

        The cooldowns of users' accounts are read each time, for these accounts alone: there may be very many.
        """
        state, accounts = await self._state.get(), list(accounts)
        if own := list(filter(is_own_account, accounts)):
            state = replace(state, cooldowns={**state.cooldowns, **await self._load_cooldowns(own)})
        pools = [await self.accounts.find_pool(name) for name in dict.fromkeys(accounts)]
        return {pool.name: state.status_of(pool) for pool in pools if pool is not None and not pool.is_removed}

    async def is_available(self, account: str) -> bool:
        """Return whether an account of the operator takes orders now, as its status says."""
        pool = self.accounts.house.get(account)
        return pool is not None and (await self._state.get()).status_of(pool).is_available

    def read_limits(self) -> Coroutine[Any, Any, LimitState]:
        """Return what the database says about the operator's accounts; the same object until it is read again."""
        return self._state.get()

    async def is_paused(self, provider: str) -> bool:
        """Return whether an operator paused a provider."""
        return provider in (await self._state.get()).paused

    def expire_statuses(self) -> None:
        """Read the statuses again at the next request, because this process has changed one."""
        self._state.expire()

    async def find_onward(self, task: Task, failure: Failed) -> tuple[str, ...]:
        """Return the providers to which an order can go after a failure, the next one first; empty if to none.

        A provider that refused for good is left out; one that may recover is last.
        """
        if not failure.another_may_serve:
            return ()
        statuses = await self._statuses_for(task)
        if failure.is_account_error and task.provider in statuses:
            usable = statuses[task.provider].usable_keys if statuses[task.provider].reason != PAUSED else ()
            if any(key_id != task.key_id for key_id in usable):
                return task.candidates or (task.provider,)
        may_recover = failure.is_account_error or (failure.retryable and not failure.cannot_serve)
        return _onward(task, statuses, keep=may_recover)

    async def find_other(self, task: Task) -> tuple[str, ...]:
        """Return the providers of an order after an unknown outcome: another one that takes orders first, if any.

        It stays with who pays, from now on: from an account of the user's own it goes to none of the operator, and the
        reverse.
        """
        statuses, is_own = await self._statuses_for(task), is_own_account(task.provider)
        of_payer = tuple(name for name in task.candidates if is_own_account(name) == is_own)
        return _onward(replace(task, candidates=of_payer), statuses, keep=True) or of_payer or (task.provider,)

    async def find_available(self, task: Task) -> tuple[str, ...]:
        """Return the providers of a queued order if its own takes none now and another does; else empty.

        A provider that is no longer configured is left out. An order of a user's account that was removed goes to
        another one even if that takes none now.
        """
        if await self.is_available(task.provider):
            return ()
        statuses = await self._statuses_for(task)
        own = statuses.get(task.provider)
        if own is not None and own.is_available:
            return ()
        onward = _onward(task, statuses, keep=own is not None)
        if onward or own is not None or not is_own_account(task.provider):
            return onward
        return tuple(name for name in task.candidates if name in statuses)

    async def _statuses_for(self, task: Task) -> Mapping[str, ProviderStatus]:
        return await self.statuses_of((task.provider, *task.candidates))

    async def _load_state(self) -> LimitState:
        """Return the state of the operator's accounts."""
        cooldowns = await self._load_cooldowns(list(self.accounts.house))
        return LimitState(paused=await self.limits.paused_providers(), cooldowns=cooldowns)

    async def _load_cooldowns(self, accounts: Sequence[str]) -> Mapping[tuple[str, str], Cooldown]:
        found = await self.limits.list_cooldowns(accounts, self.clock.now())
        return {(one.provider, one.key_id): one for one in found}


def _onward(task: Task, statuses: Mapping[str, ProviderStatus], *, keep: bool) -> tuple[str, ...]:
    """Return the candidates with the first available other one in front. keep: the current one stays, as the last."""
    others = [name for name in task.candidates if name != task.provider]
    chosen = next((name for name in others if name in statuses and statuses[name].is_available), None)
    if chosen is None:
        return ()
    rest = [name for name in others if name != chosen]
    return (chosen, *rest, *([task.provider] if keep else []))
