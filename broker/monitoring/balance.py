"""Balance at the providers: queried every five minutes by one process, stored for all processes of the database."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from broker.clock import Clock
from broker.errors import ProviderError
from broker.logs import log
from broker.metrics import Metrics
from broker.providers.base import Provider
from broker.providers.pool import ProviderPool
from storage.tables import Tables

REFRESH_SECONDS: Final = 300.0
QUERY_SECONDS: Final = 5.0
MAX_AGE_SECONDS: Final = 3 * REFRESH_SECONDS
"""An older answer is not reported."""


@dataclass(frozen=True, kw_only=True)
class BalanceMonitor:
    """Balances by account, shared through the database."""

    clock: Clock
    tables: Tables
    pools: Mapping[str, ProviderPool]
    metrics: Metrics
    low_balance: Callable[[str], float | None]
    """Provider → the balance, in its unit, below which an account is to be topped up; None if unknown."""

    async def refresh(self) -> None:
        """Query every provider, unless a process did so recently. The query is free; a failure is only logged."""
        if not await self.tables.periodic_jobs.try_acquire("balance", now=self.clock.now(), every=REFRESH_SECONDS):
            return
        for provider in (account for pool in self.pools.values() for account in pool.accounts.values()):
            if (balance := await _query_balance(provider)) is not None:
                await self._store(provider, balance)

    async def _store(self, provider: Provider, balance: float) -> None:
        """Store a balance, and warn if it is low and the one before was not."""
        state, name = self.tables.cluster_state, _state_name(provider.name, provider.key_id)
        before, low = await state.get_value(name), self.low_balance(provider.name)
        if low is not None and balance < low and (before is None or float(before.split()[0]) >= low):
            log.warning(
                "the balance of an account is low: top it up",
                action="balance_low",
                provider=provider.name,
                key_id=provider.key_id,
                balance=balance,
                low_below=low,
            )
            self.metrics.low_balances.labels(provider.name, provider.key_id).inc()
        await state.set_value(name, f"{balance!r} {self.clock.now()!r}")

    async def latest(self) -> dict[tuple[str, str], float]:
        """Return the recent balances by provider and key id; those without a recent answer are missing."""
        now, state = self.clock.now(), self.tables.cluster_state
        balances = {
            (name, key_id): _parse_recent(await state.get_value(_state_name(name, key_id)), now)
            for name, pool in self.pools.items()
            for key_id in pool.accounts
        }
        return {account: balance for account, balance in balances.items() if balance is not None}


def _state_name(provider: str, key_id: str) -> str:
    return f"balance of {provider} {key_id}"


async def _query_balance(provider: Provider) -> float | None:
    try:
        async with asyncio.timeout(QUERY_SECONDS):
            return await provider.balance()
    except (ProviderError, TimeoutError) as error:
        if isinstance(error, ProviderError) and error.code == "provider_credits":
            return 0.0
        log.debug("the provider did not report its balance", action="balance_unavailable", provider=provider.name)
        return None


def _parse_recent(value: str | None, now: float) -> float | None:
    if value is None:
        return None
    balance, at = map(float, value.split())
    return balance if math.isfinite(balance) and abs(now - at) <= MAX_AGE_SECONDS else None
