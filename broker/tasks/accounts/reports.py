"""Users' own keys as they see them: whether each works now, its load, and what is left on its account."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Literal

from broker.accounts.provider_keys import ProviderKeyService
from broker.clock import Clock
from broker.errors import ProviderError
from broker.tasks.accounts.pools import ProviderAccounts
from storage.accounts.provider_keys import ProviderKey
from storage.limits.provider_limits import ProviderLimits

BALANCE_SECONDS: Final = 5.0

KeyState = Literal["ok", "refused", "no_credits", "limited", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class OwnKeyReport:
    """One key of a user."""

    provider: str
    last_four: str
    is_verified: bool
    """The provider accepted it when it was set."""
    state: KeyState
    """refused, no_credits: the provider said so at an order. limited: it limits the rate of orders, or does not answer.
    unreadable: it does not open any more, and must be set again."""
    limited_until: float | None
    """Since the epoch; None if orders are submitted."""
    in_flight: int
    concurrency: int
    balance: float | None
    """In the provider's unit; None if it was not asked, or does not say it."""
    unit: str | None
    created_at: float


@dataclass(frozen=True, kw_only=True)
class OwnKeys:
    """Reports on the keys of one owner."""

    clock: Clock
    service: ProviderKeyService
    accounts: ProviderAccounts
    limits: ProviderLimits

    async def list_reports(self, owner: str) -> list[OwnKeyReport]:
        return [await self._report(key) for key in await self.service.list_keys(owner)]

    async def get_report(self, owner: str, provider: str) -> OwnKeyReport:
        """Return a key with its balance, which its provider is asked for. Raises `ApiError("not_found")`."""
        key = await self.service.get_key(owner, provider)
        return await self._report(key, balance=await self._query_balance(key))

    async def _report(self, key: ProviderKey, *, balance: float | None = None) -> OwnKeyReport:
        now, pool = self.clock.now(), await self.accounts.find_pool(key.account)
        adapter = pool.accounts.get(key.id) if pool is not None else None
        load = await self.limits.get_load(key.account, key.id, now)
        state: KeyState = "ok"
        if adapter is None:
            state = "unreadable"
        elif load.is_set_aside:
            state = "refused" if load.reason == "provider_auth" else "no_credits"
        elif load.paused_until > now:
            state = "limited"
        return OwnKeyReport(
            provider=key.provider,
            last_four=key.last_four,
            is_verified=key.is_verified,
            state=state,
            limited_until=load.paused_until if load.paused_until > now else None,
            in_flight=load.running,
            concurrency=adapter.concurrency if adapter is not None else 0,
            balance=balance,
            unit=self.accounts.registry.terms(key.provider).unit,
            created_at=key.created_at,
        )

    async def _query_balance(self, key: ProviderKey) -> float | None:
        pool = await self.accounts.find_pool(key.account)
        adapter = pool.accounts.get(key.id) if pool is not None else None
        try:
            async with asyncio.timeout(BALANCE_SECONDS):
                return None if adapter is None else await adapter.balance()
        except (ProviderError, TimeoutError) as error:
            return 0.0 if isinstance(error, ProviderError) and error.code == "provider_credits" else None
