"""Metrics read from the database, collected when the metrics page is requested and cached for their cost.

Active tasks are few and indexed, so they are counted every few seconds. Ended ones are many (half a second for a
million), so their number may be five minutes old.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from prometheus_client import generate_latest

from broker.cache import TtlCache
from broker.clock import Clock
from broker.metrics import Metrics
from broker.monitoring.balance import BalanceMonitor
from storage.states import ACTIVE_STATES, FINAL_STATES, TaskState
from storage.tables import Tables

ACTIVE_TTL_SECONDS: Final = 5.0
ENDED_TTL_SECONDS: Final = 300.0


@dataclass(kw_only=True)
class DatabaseCollector:
    """Fills the gauges and renders the metrics page."""

    clock: Clock
    metrics: Metrics
    tables: Tables
    balances: BalanceMonitor
    read_budget: Callable[[], Awaitable[Mapping[str, float]]]
    """Returns limit and used part of the daily budget in USD by name; empty without one."""
    steps_running: Callable[[], int]
    """Returns the number of steps in progress in this process."""

    def __post_init__(self) -> None:
        count, clock = self.tables.tasks.count_by_state, self.clock
        self._active = TtlCache(partial(count, ACTIVE_STATES), seconds=ACTIVE_TTL_SECONDS, clock=clock)
        self._ended = TtlCache(partial(count, FINAL_STATES), seconds=ENDED_TTL_SECONDS, clock=clock)
        pending = self.tables.deliveries.count_pending
        self._pending_deliveries = TtlCache(pending, seconds=ACTIVE_TTL_SECONDS, clock=clock)
        self._provider_state = TtlCache(self._load_provider_state, seconds=ACTIVE_TTL_SECONDS, clock=clock)

    async def render_page(self) -> bytes:
        """Return the current metrics in the Prometheus text format."""
        counts = {**await self._active.get(), **await self._ended.get()}
        for state in TaskState:
            self.metrics.tasks.labels(state.value).set(counts.get(state.value, 0))
        cooldowns, balances = await self._provider_state.get()
        for account, until in cooldowns.items():
            self.metrics.provider_cooldown.labels(*account).set(max(0.0, until - self.clock.now()))
        self.metrics.credits_left.clear()
        for account, balance in balances.items():
            self.metrics.credits_left.labels(*account).set(balance)
        for kind, usd in (await self.read_budget()).items():
            self.metrics.daily_budget.labels(kind).set(usd)
        self.metrics.deliveries_pending.set(await self._pending_deliveries.get())
        self.metrics.steps_running.set(self.steps_running())
        return generate_latest(self.metrics.registry)

    async def _load_provider_state(self) -> tuple[Mapping[tuple[str, str], float], Mapping[tuple[str, str], float]]:
        """Return the end of each key's cooldown, and the balances, by provider and key id."""
        now = self.clock.now()
        cooldowns = {
            (name, key_id): (await self.tables.provider_limits.get_load(name, key_id, now)).paused_until
            for name, pool in self.balances.pools.items()
            for key_id in pool.accounts
        }
        return cooldowns, await self.balances.latest()
