"""Metrics read from the database, collected when the metrics page is requested and cached for their cost.

Tasks of a state are counted up to `MAX_COUNTED`: the cost of the page must not grow with what is stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, get_args

from prometheus_client import generate_latest

from broker.cache import TtlCache
from broker.clock import Clock
from broker.metrics import Metrics
from broker.monitoring.balance import BalanceMonitor
from broker.monitoring.process_sums import ReadSums, SummedRegistry
from storage.limits.provider_limits import AccountLoad, Circuit
from storage.states import ACTIVE_STATES, FINAL_STATES, TaskState
from storage.tables import Tables

ACTIVE_TTL_SECONDS: Final = 5.0
ENDED_TTL_SECONDS: Final = 300.0
MAX_COUNTED: Final = 100_000


@dataclass(frozen=True, kw_only=True)
class ProviderState:
    """State of the keys in the database, by provider and key id."""

    loads: Mapping[tuple[str, str], AccountLoad]
    paused: Collection[str]
    """Providers that an operator paused."""
    balances: Mapping[tuple[str, str], float]
    """Those that are known."""


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
    read_sums: ReadSums | None = None
    """None if this process is the only one of its machine."""
    max_counted: int = MAX_COUNTED

    def __post_init__(self) -> None:
        self.metrics.steps_running.set_function(self.steps_running)
        count, clock = self.tables.tasks.count_by_state, self.clock
        self._active = TtlCache(
            partial(count, ACTIVE_STATES, at_most=self.max_counted), seconds=ACTIVE_TTL_SECONDS, clock=clock
        )
        self._ended = TtlCache(
            partial(count, FINAL_STATES, at_most=self.max_counted), seconds=ENDED_TTL_SECONDS, clock=clock
        )
        pending = self.tables.deliveries.count_pending
        self._pending_deliveries = TtlCache(pending, seconds=ACTIVE_TTL_SECONDS, clock=clock)
        self._provider_state = TtlCache(self._load_provider_state, seconds=ACTIVE_TTL_SECONDS, clock=clock)

    async def render_page(self) -> bytes:
        """Return the current metrics in the Prometheus text format."""
        counts = {**await self._active.get(), **await self._ended.get()}
        for state in TaskState:
            self.metrics.tasks.labels(state.value).set(counts.get(state.value, 0))
        self._set_provider_state(await self._provider_state.get())
        for kind, usd in (await self.read_budget()).items():
            self.metrics.daily_budget.labels(kind).set(usd)
        self.metrics.deliveries_pending.set(await self._pending_deliveries.get())
        sums = await self.read_sums() if self.read_sums else None
        return generate_latest(SummedRegistry(self.metrics.registry, sums or ()))

    async def _load_provider_state(self) -> ProviderState:
        now, limits = self.clock.now(), self.tables.provider_limits
        return ProviderState(
            loads={
                (name, key_id): await limits.get_load(name, key_id, now)
                for name, pool in self.balances.pools.items()
                for key_id in pool.accounts
            },
            paused=await limits.paused_providers(),
            balances=await self.balances.latest(),
        )

    def _set_provider_state(self, state: ProviderState) -> None:
        now = self.clock.now()
        for account, load in state.loads.items():
            self.metrics.provider_cooldown.labels(*account).set(max(0.0, load.paused_until - now))
            for circuit in get_args(Circuit):
                self.metrics.provider_circuit.labels(*account, circuit).set(circuit == load.circuit(now))
        for name in self.balances.pools:
            self.metrics.provider_paused.labels(name).set(name in state.paused)
        self.metrics.credits_left.clear()
        for account, balance in state.balances.items():
            self.metrics.credits_left.labels(*account).set(balance)
