"""The ETA of a task: its position in the queue, and the time that recent tasks like it took.

The position comes from one read of the queue per process and moment, for all callers. The estimate is the median of our
own history, or absent: no percentage is invented, and a time that has passed is not extended.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Final, TypeVar

from broker.cache import TtlCache
from broker.catalog import Catalog
from broker.clock import Clock
from broker.presenter import UNKNOWN, Progress
from broker.tasks.accounts.pools import ProviderAccounts
from broker.tasks.submissions import account_limits
from storage.ids import provider_of
from storage.limits.provider_limits import WINDOW_SECONDS, AccountLoad
from storage.states import TaskState
from storage.tables import Tables
from storage.tasks import Task, TaskDurations

T = TypeVar("T")

MAX_POSITIONS: Final = 10_000
"""Every task further back has this position plus one."""
QUEUE_TTL_SECONDS: Final = 1.5
HISTORY_TTL_SECONDS: Final = 30.0
MIN_HISTORY: Final = 5
"""Images needed for an estimate."""
MAX_HISTORY: Final = 50
MAX_CACHED_ACCOUNTS: Final = 200


@dataclass(frozen=True, kw_only=True)
class _Queue:
    """The queue of one provider."""

    positions: Mapping[str, int]
    """By task id, from 1."""
    end: int | None
    """Position of the orders beyond those that were read; None if all were."""
    load: AccountLoad
    is_paused: bool
    """By the operator: then there is no estimate."""


@dataclass(kw_only=True)
class EtaEstimator:
    """Estimates when tasks end."""

    clock: Clock
    tables: Tables
    accounts: ProviderAccounts
    catalog: Catalog
    max_positions: int = MAX_POSITIONS
    _queues: dict[str, TtlCache[_Queue]] = field(default_factory=dict)
    _histories: dict[str, TtlCache[Mapping[str, Sequence[TaskDurations]]]] = field(default_factory=dict)

    async def estimate(self, task: Task) -> Progress:
        """Return position and ETA; costs nothing for a task that has ended, or that waits for another one."""
        if task.has_ended or task.is_held:
            return UNKNOWN
        if task.state == TaskState.QUEUED:
            return await self._estimate_queued(task)
        return await self._estimate_running(task)

    def _cache_of(
        self,
        caches: dict[str, TtlCache[T]],
        account: str,
        load: Callable[[str], Awaitable[T]],
        seconds: float,
    ) -> TtlCache[T]:
        """Return the cache of an account; the oldest ones make room for those of users' accounts."""
        if account not in caches:
            while len(caches) >= MAX_CACHED_ACCOUNTS:
                caches.pop(next(iter(caches)))
            caches[account] = TtlCache(partial(load, account), seconds=seconds, clock=self.clock)
        return caches[account]

    # -- the queue

    async def _estimate_queued(self, task: Task) -> Progress:
        cached = self._cache_of(self._queues, task.provider, self._load_queue, QUEUE_TTL_SECONDS)
        queue = await cached.get()
        position = queue.positions.get(task.id)
        eta = await self._queued_eta(task, position, queue.load) if position and not queue.is_paused else None
        return Progress(position=position or queue.end, eta=eta, fresh_for=max(0.0, cached.expires_in))

    async def _load_queue(self, provider: str) -> _Queue:
        ids = await self.tables.task_queue.list_ids(provider, self.max_positions + 1)
        return _Queue(
            positions={task_id: position for position, task_id in enumerate(ids[: self.max_positions], 1)},
            end=len(ids) if len(ids) > self.max_positions else None,
            load=await self._get_load(provider),
            is_paused=provider_of(provider) in await self.tables.provider_limits.paused_providers(),
        )

    async def _get_load(self, provider: str) -> AccountLoad:
        """Return the load of all keys of a provider together; it is paused until the first of them is not."""
        limits, now = self.tables.provider_limits, self.clock.now()
        pool = await self.accounts.find_pool(provider)
        key_ids = pool.accounts if pool is not None else ()
        loads = [await limits.get_load(provider, key_id, now) for key_id in key_ids]
        return AccountLoad(
            paused_until=min((load.paused_until for load in loads), default=0.0),
            running=sum(load.running for load in loads),
            errors=sum(load.errors for load in loads),
        )

    async def _queued_eta(self, task: Task, position: int, load: AccountLoad) -> int | None:
        """Return the seconds until the end: orders are submitted as fast as the provider's limits allow."""
        durations, pool = await self._durations(task), await self.accounts.find_pool(task.provider)
        if durations is None or pool is None or not pool.accounts:
            return None
        limits = [account_limits(account) for account in pool.accounts.values()]
        creates_per_window = sum(one.creates_per_window for one in limits)
        concurrency = sum(one.concurrency for one in limits)
        by_window = (position - 1) // creates_per_window * WINDOW_SECONDS
        behind = max(0, position - max(0, concurrency - load.running))
        by_slots = behind * durations.provider_seconds / concurrency
        cooldown = max(0.0, load.paused_until - self.clock.now())
        submission = max(cooldown + max(by_window, by_slots), task.due_at - self.clock.now())
        return round_up(submission + durations.provider_seconds + durations.download_seconds)

    # -- history

    async def _estimate_running(self, task: Task) -> Progress:
        """Estimate a task that was submitted. Past its estimate it has none; without history it may get one later."""
        durations, is_fetching = await self._durations(task), task.state == TaskState.FETCHING
        started_at = task.finished_at if is_fetching else task.sent_at
        if durations is None:
            return Progress(fresh_for=HISTORY_TTL_SECONDS)
        if started_at is None:
            return UNKNOWN
        whole = durations.download_seconds + (0.0 if is_fetching else durations.provider_seconds)
        left = min(started_at + whole - self.clock.now(), whole)  # the clock may have been set back
        return Progress(eta=round_up(left), fresh_for=stable_for(left))

    async def _durations(self, task: Task) -> TaskDurations | None:
        """Return the durations by model and resolution, else by model, else by provider.

        For an account of a user without enough history those of the operator's at the same provider.
        """
        accounts = dict.fromkeys((task.provider, provider_of(task.provider)))
        found = [await self._durations_at(account, task) for account in accounts]
        return next((durations for durations in found if durations is not None), None)

    async def _durations_at(self, account: str, task: Task) -> TaskDurations | None:
        history = await self._cache_of(self._histories, account, self._load_history, HISTORY_TTL_SECONDS).get()
        same_model = history.get(task.model, ())
        everything = [image for model in history.values() for image in model]
        same_resolution = [image for image in same_model if image.resolution == task.resolution]
        candidates = (same_resolution, same_model, everything)
        sufficient = next((images for images in candidates if len(images) >= MIN_HISTORY), None)
        return _median_durations(sufficient[:MAX_HISTORY]) if sufficient else None

    async def _load_history(self, provider: str) -> Mapping[str, Sequence[TaskDurations]]:
        return {
            model.name: await self.tables.tasks.recent_durations(provider, model.name) for model in self.catalog.models
        }


def _median_durations(images: Sequence[TaskDurations]) -> TaskDurations:
    """Return medians; a clock that was set in between makes none negative."""
    return TaskDurations(
        resolution=None,
        provider_seconds=max(0.0, median(image.provider_seconds for image in images)),
        download_seconds=max(0.0, median(image.download_seconds for image in images)),
    )


def _rounding_step(seconds: float) -> int:
    """Return the precision of an estimate; a response that stays the same for a while need not be sent again."""
    return next((step for limit, step in ((30, 5), (120, 10), (600, 30)) if seconds <= limit), 60)


def round_up(seconds: float) -> int | None:
    """Round up to a step; None when the time is over."""
    if seconds <= 0:
        return None
    step = _rounding_step(seconds)
    return math.ceil(seconds / step) * step


def stable_for(seconds: float) -> float:
    """Return how long the rounded estimate stays the same."""
    if seconds <= 0:
        return math.inf
    step = _rounding_step(seconds)
    return seconds - (math.ceil(seconds / step) - 1) * step
