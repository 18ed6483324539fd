"""Sources of work beside the tasks' own states: queued orders by provider capacity, and the callback inbox."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.clock import Clock
from broker.providers.base import Provider
from broker.tasks.running import RunningStep, RunningSteps
from broker.tasks.steps.callbacks import CallbackStep
from storage.callbacks import Callbacks
from storage.provider_limits import AccountLimits, ProviderLimits
from storage.tasks import Lease, Task, Tasks

CALLBACK_CONCURRENCY: Final = 32
CALLBACK_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class SubmissionQueue:
    """The queued orders of each provider, within its limits."""

    clock: Clock
    tasks: Tasks
    lanes: ProviderLimits
    providers: Mapping[str, Provider]

    async def claim(self, provider: str, lease: Lease, *, limit: int) -> list[Task]:
        """Claim queued orders for which the provider has capacity."""
        now = self.clock.now()
        room = await self.lanes.get_capacity(provider, self.limits_of(provider), now)
        return await self.tasks.claim_queued(provider, now=now, lease=lease, limit=min(room.free, limit))

    async def next_at(self, provider: str, queued_at: float) -> float:
        """Return the moment of the next submission. queued_at: when the first order is due; infinite without one."""
        if math.isinf(queued_at):
            return queued_at
        now = self.clock.now()
        room = await self.lanes.get_capacity(provider, self.limits_of(provider), now)
        return max(queued_at, now if room.free else room.recheck_at)

    def limits_of(self, provider: str) -> AccountLimits:
        upstream = self.providers[provider]
        return AccountLimits(creates_per_window=upstream.creates_per_10s, concurrency=upstream.concurrency)


@dataclass(kw_only=True)
class CallbackQueue:
    """The callbacks that wait in the inbox."""

    hooks: Callbacks
    step: CallbackStep
    running: RunningSteps
    _task_ids: set[str] = field(default_factory=set)
    """Tasks whose callbacks are being processed."""

    async def start_due(self) -> None:
        """Begin to process callbacks, one step per task."""
        for task_id in await self.hooks.tasks_with_unprocessed(CALLBACK_CONCURRENCY + len(self._task_ids)):
            if task_id not in self._task_ids and len(self._task_ids) < CALLBACK_CONCURRENCY:
                self._task_ids.add(task_id)
                self.running.start(self._process(task_id), RunningStep(task_ids=(task_id,)))

    async def _process(self, task_id: str) -> None:
        """Process the callbacks of a task. After an error they stay in the inbox and are tried again a little later."""
        succeeded = await self.running.contain_errors(self.step.process_callbacks(task_id), task_id, "callbacks")
        delay = 0.0 if succeeded else CALLBACK_RETRY_SECONDS
        asyncio.get_running_loop().call_later(delay, self._task_ids.discard, task_id)
