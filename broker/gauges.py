"""What the database knows and a metric shows: looked at when somebody asks, and no oftener than it is worth.

Living tasks are few and have an index, so they are counted every few seconds. Ended ones are many – half a second for a
million – so their number may be five minutes old.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from broker.clock import Clock
from broker.credits import Credits
from broker.metrics import Metrics
from broker.snapshots import Snapshot
from storage.deliveries import Deliveries
from storage.provider_limits import Lanes
from storage.states import ACTIVE_STATES, FINAL_STATES, State
from storage.tasks import Tasks

LIVING_SECONDS: Final = 5.0
ENDED_SECONDS: Final = 300.0


class Gauges:
    """steps_running: how many this process takes just now."""

    def __init__(
        self,
        *,
        clock: Clock,
        metrics: Metrics,
        tasks: Tasks,
        lanes: Lanes,
        deliveries: Deliveries,
        accounts: Credits,
        steps_running: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._lanes = lanes
        self._accounts = accounts
        self._steps_running = steps_running
        self._living = Snapshot(lambda: tasks.counts(ACTIVE_STATES), seconds=LIVING_SECONDS, clock=clock)
        self._ended = Snapshot(lambda: tasks.counts(FINAL_STATES), seconds=ENDED_SECONDS, clock=clock)
        self._untold = Snapshot(deliveries.pending, seconds=LIVING_SECONDS, clock=clock)
        self._lately = Snapshot(self._look, seconds=LIVING_SECONDS, clock=clock)

    async def page(self) -> bytes:
        """The Prometheus text format, with everything as it is now."""
        counts = {**await self._living.get(), **await self._ended.get()}
        for state in State:
            self._metrics.tasks.labels(state.value).set(counts.get(state.value, 0))
        paused, left = await self._lately.get()
        for provider, until in paused.items():
            self._metrics.lane_paused.labels(provider).set(max(0.0, until - self._clock.now()))
        self._metrics.credits_left.clear()
        for provider, amount in left.items():
            self._metrics.credits_left.labels(provider).set(amount)
        self._metrics.deliveries_pending.set(await self._untold.get())
        self._metrics.steps_running.set(self._steps_running())
        return self._metrics.page()

    async def _look(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Until when each lane is paused, and what is left at each provider."""
        now = self._clock.now()
        paused = {name: (await self._lanes.load(name, now)).paused_until for name in self._accounts.providers}
        return paused, await self._accounts.left()
