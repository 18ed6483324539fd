"""Providers as the operator sees them: load, limits, circuit and errors of every key; and the pause of a provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.clock import Clock
from broker.errors import ApiError
from broker.logs import log
from broker.monitoring.balance import BalanceMonitor
from broker.providers.base import Provider
from broker.providers.pool import ProviderPool
from broker.providers.registry import ProviderRegistry
from broker.providers.signing_keys import verifies_signatures
from broker.tasks.routing import PAUSED, ProviderStatus, Router
from storage.limits.provider_limits import Circuit
from storage.tables import Tables
from storage.tasks import DUE_CHANNEL

ERROR_SECONDS: Final = 3600.0
"""Age of the attempts in the error rate."""
ORDER_CODES: Final = frozenset({"safety_input", "safety_output", "no_image", "provider_rejected", "canceled"})
"""Errors of the order, which say nothing about the provider."""


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """One key of a provider."""

    key_id: str
    circuit: Circuit
    cooldown_until: float | None
    """Since the epoch; None if orders are submitted."""
    cooldown_reason: str | None
    """Task error code."""
    in_flight: int
    concurrency: int
    submitted: int
    """In the last 10 seconds."""
    creates_per_10s: int
    balance: float | None
    """In the provider's unit; None if unknown."""
    recent_attempts: int
    """Ended ones of the last hour, without errors of the order itself."""
    recent_errors: int


@dataclass(frozen=True, kw_only=True)
class ProviderReport:
    """One provider in use."""

    name: str
    base_url: str
    models: tuple[str, ...]
    """Canonical names."""
    is_paused: bool
    """By the operator."""
    unavailable_because: str | None
    """`paused`, or a task error code; None if it takes orders."""
    callbacks_signed: bool
    """False if its callbacks have their token alone."""
    unit: str | None
    keys: tuple[KeyReport, ...]


@dataclass(frozen=True, kw_only=True)
class ProviderAdmin:
    """Reports on the providers in use, and pauses and resumes them for all processes."""

    clock: Clock
    tables: Tables
    router: Router
    balances: BalanceMonitor
    registry: ProviderRegistry

    async def list_reports(self) -> list[ProviderReport]:
        """Return every provider in use, the preferred one first."""
        self.router.expire_statuses()  # the operator may just have changed one from another process
        statuses, balances = await self.router.statuses(), await self.balances.latest()
        return [await self._report(pool, statuses[name], balances) for name, pool in self.router.accounts.house.items()]

    async def get_report(self, name: str) -> ProviderReport:
        """Return one provider. Raises `ApiError("not_found")` for a name that is not in use."""
        if name not in self.router.accounts.house:
            in_use = ", ".join(self.router.accounts.house)
            raise ApiError("not_found", f"No provider of this name is in use. In use: {in_use}.")
        return next(report for report in await self.list_reports() if report.name == name)

    async def pause(self, name: str) -> ProviderReport:
        """Submit nothing more to a provider; jobs that it has go on. Raises as `get_report`."""
        await self.get_report(name)
        await self.tables.database.transact(self.tables.provider_limits.pause_provider(name, self.clock.now()))
        log.info("provider paused", action="provider_paused", provider=name)
        return await self.get_report(name)

    async def resume(self, name: str) -> ProviderReport:
        """End the pause and the cooldowns of a provider. Raises as `get_report`."""
        await self.get_report(name)
        ending = self.tables.provider_limits.resume_provider(name)
        await self.tables.database.transact(*ending, wake=(DUE_CHANNEL,))
        self.router.expire_statuses()
        self.tables.database.notify(DUE_CHANNEL)  # again: the worker of this process may have read an old status
        log.info("provider resumed", action="provider_resumed", provider=name)
        return await self.get_report(name)

    async def _report(
        self, pool: ProviderPool, status: ProviderStatus, balances: Mapping[tuple[str, str], float]
    ) -> ProviderReport:
        provider = pool.preferred
        return ProviderReport(
            name=pool.name,
            base_url=provider.base_url,
            models=tuple(model.name for model in self.registry.catalog.models if provider.supports(model.name)),
            is_paused=status.reason == PAUSED,
            unavailable_because=status.reason,
            callbacks_signed=verifies_signatures(self.registry.signatures[pool.name]),
            unit=self.registry.terms(pool.name).unit,
            keys=tuple([await self._report_key(account, balances) for account in pool.accounts.values()]),
        )

    async def _report_key(self, account: Provider, balances: Mapping[tuple[str, str], float]) -> KeyReport:
        name, key_id, now = account.name, account.key_id, self.clock.now()
        load = await self.tables.provider_limits.get_load(name, key_id, now)
        ended = await self.tables.attempts.count_ended(name, key_id, now - ERROR_SECONDS)
        counted = {code: n for code, n in ended.items() if code not in ORDER_CODES}
        return KeyReport(
            key_id=key_id,
            circuit=load.circuit(now),
            cooldown_until=load.paused_until if load.paused_until > now else None,
            cooldown_reason=load.reason or None,
            in_flight=load.running,
            concurrency=account.concurrency,
            submitted=load.submitted,
            creates_per_10s=account.creates_per_10s,
            balance=balances.get((name, key_id)),
            recent_attempts=sum(counted.values()),
            recent_errors=sum(n for code, n in counted.items() if code is not None),
        )
