"""The worker: claims due tasks, runs one step per task, renews leases, and drains on stop.

Nothing that must happen is stored only here. If the process dies, its leases end and another worker goes on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from broker.clock import Clock, seconds_to_beat
from broker.logs import log
from broker.monitoring.balance import BalanceMonitor
from broker.notifications.deliverer import Deliverer
from broker.tasks import retention
from broker.tasks.retention import ClockGuard, Retention
from broker.tasks.running import (
    MAX_SLEEP_SECONDS,
    SHARED_SLOTS,
    LeaseKeeper,
    NextSteps,
    RunningStep,
    RunningSteps,
    Work,
)
from broker.tasks.steps.callbacks import CallbackQueue
from broker.tasks.steps.table import StepTable
from broker.tasks.submissions import SubmissionQueue
from storage.errors import StorageError
from storage.states import ACTIVE_STATES, FINAL_STATES, TaskState
from storage.tasks import DUE_CHANNEL, DueWork, Task, Tasks

LOCKED_PAUSE_SECONDS: Final = 0.1
"""Pause when every due task was locked by another worker."""
SLOW_QUERY_SECONDS: Final = 1.0
"""A poll that takes longer counts as a database outage."""
DRAIN_SECONDS: Final = 7.0
MAX_ORPHANS: Final = 100
"""Orders of one provider that is no longer configured, moved at a time."""
HELD_DRAIN_SECONDS: Final = 60.0
"""Time that submissions get on stop which wait for a result: it is paid, and lost if the connection ends."""


@dataclass(kw_only=True)
class Worker:
    """The worker of one process."""

    clock: Clock
    tasks: Tasks
    steps: StepTable
    submissions: SubmissionQueue
    callbacks: CallbackQueue
    deliverer: Deliverer
    retention: Retention
    balances: BalanceMonitor
    running: RunningSteps
    next_steps: NextSteps
    leases: LeaseKeeper
    clock_guard: ClockGuard
    chores: Mapping[str, Callable[[], Awaitable[object]]] = field(default_factory=dict)
    """Further work of each minute, by the name of its step in metrics and logs."""
    drain_seconds: float = DRAIN_SECONDS
    """Time that running steps get on stop."""
    held_drain_seconds: float = HELD_DRAIN_SECONDS
    last_heartbeat: float = 0.0
    last_housekeeping: float = 0.0
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Work until `stop`; then wait for running steps, and release what is left after `drain_seconds`."""
        self.last_heartbeat = self.clock.now()
        await self.running.contain_errors(self.retention.apply_shorter_retention(), "", "retention")
        with self.tasks.database.listen(DUE_CHANNEL) as subscription:
            keeper = asyncio.create_task(self.leases.keep(), name="lease-keeper")
            self.next_steps.start = self._start_step
            try:
                while not self._stopping.is_set():
                    pause = await self.poll_once()
                    await subscription.wait(min(pause, seconds_to_beat(MAX_SLEEP_SECONDS)))
            finally:
                self.next_steps.start = None
                await self.drain()
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)

    def stop(self) -> None:
        """Begin no further step."""
        self._stopping.set()
        self.next_steps.start = None
        self.tasks.database.notify(DUE_CHANNEL)

    async def clean_up(self) -> int:
        """Apply retention now, and nothing else; return the number of tasks removed."""
        removed = 0
        await self.retention.apply_shorter_retention()
        for state in FINAL_STATES:
            while ended := await self.retention.take_due(state, self.leases.create_lease()):
                removed += len(ended) if state != TaskState.EXPIRED else 0
                await self.running.contain_errors(self.retention.run(ended), "", "retention")
        await self.retention.delete_leftovers()
        return removed

    # -- polling

    async def poll_once(self) -> float:
        """Start the steps that are due; return the seconds until the next poll."""
        try:
            self.last_heartbeat = self.clock.now()
            self.submissions.lanes.take_turn()
            due_work = await self.read_due_work()
            if due_work.has_callbacks:
                await self.callbacks.start_due()
            count = self.running.count
            was_due = await self._start_due(due_work)
            if was_due and self._may_start_more(due_work):
                due_work = await self.read_due_work()
            self.submissions.lanes.keep_full(due_work.queued)  # only to those does this worker return by itself
            self._start_housekeeping()
            is_locked = was_due and self.running.count == count  # due, but locked by another worker
            return max(LOCKED_PAUSE_SECONDS if is_locked else 0.0, await self.seconds_until_due(due_work))
        except StorageError as error:
            log.error("the database is unavailable", action="store_unavailable", why=str(error))
            self.leases.record_outage()
            return MAX_SLEEP_SECONDS

    def _may_start_more(self, due_work: DueWork) -> bool:
        """Return whether a step that was due has a free slot left, so that what is due next is to be known.

        Otherwise the end of a step wakes the worker, and it reads then.
        """
        now = self.clock.now()
        return (
            any(at <= now and self.running.free_slots(state) > 0 for state, at in due_work.due.items())
            or any(at <= now and self._free_submissions(account) > 0 for account, at in due_work.queued.items())
            or due_work.queue_deadline_at <= now
            or due_work.delivery_at <= now
        )

    async def read_due_work(self) -> DueWork:
        """Return what is due, and when."""
        begun = self.clock.monotonic()
        house = list(self.submissions.accounts.house)
        due_work = await self.tasks.get_due_work(
            self._due_states(), house, self.clock.now(), callbacks_in_hand=self.callbacks.count
        )
        if due_work.has_own_lanes:
            own = await self.submissions.lanes.read_due()
            due_work = replace(due_work, queued={**due_work.queued, **own})
        took = self.clock.monotonic() - begun
        self.running.metrics.database_seconds.labels("poll").observe(took)
        if took < SLOW_QUERY_SECONDS:
            return due_work
        self.leases.record_outage()  # the database was away, and came back before the query was given up
        return replace(due_work, due={state: at for state, at in due_work.due.items() if state != TaskState.SUBMITTING})

    def _due_states(self) -> list[TaskState]:
        """Return the states whose steps may run now, QUEUED aside."""
        self.clock_guard.check_clock()
        skipped = {TaskState.QUEUED} if self.leases.may_recover else {TaskState.QUEUED, TaskState.SUBMITTING}
        states = ACTIVE_STATES if self.clock_guard.deletion_paused else ACTIVE_STATES + FINAL_STATES
        return [state for state in states if state not in skipped]

    async def seconds_until_due(self, due_work: DueWork) -> float:
        """Return the seconds until a step with a free slot is due, `MAX_SLEEP_SECONDS` at most."""
        now = self.clock.now()
        moments = [at for state, at in due_work.due.items() if self.running.free_slots(state) > 0]
        for provider, at in due_work.queued.items():
            if self._free_submissions(provider) > 0:
                moments.append(await self.submissions.next_at(provider, at))
        if self.running.free_slots(TaskState.QUEUED) > 0:
            moments.append(due_work.queue_deadline_at)
        if due_work.has_own_lanes and self.submissions.lanes.has_more:
            moments.append(now + LOCKED_PAUSE_SECONDS)
        if self.deliverer.free_slots:
            moments.append(max(due_work.delivery_at, now + self.deliverer.pause_seconds))
        return min(max(0.0, min(moments, default=math.inf) - now), MAX_SLEEP_SECONDS)

    # -- starting steps

    async def _start_due(self, due_work: DueWork) -> bool:
        """Start what is due; return whether anything was."""
        now = self.clock.now()
        due = [state for state, at in due_work.due.items() if at <= now]
        for state in due:
            if state in FINAL_STATES:
                await self._start_retention(state)
            else:
                await self._start_all(await self._claim(state, self.running.free_slots(state)))
        if due_work.queue_deadline_at <= now:
            lease, limit = self.leases.create_lease(), self.running.free_slots(TaskState.QUEUED)
            await self._start_all(await self.tasks.claim_overdue(now=now, lease=lease, limit=limit))
        queued = [provider for provider, at in due_work.queued.items() if at <= now]
        for provider in queued:
            lease, limit = self.leases.create_lease(), self._free_submissions(provider)
            await self._start_all(await self.submissions.claim(provider, lease, limit=limit))
        has_webhooks = (
            due_work.delivery_at <= now and self.deliverer.free_slots > 0 and not self.deliverer.pause_seconds
        )
        if has_webhooks:
            for delivery in await self.deliverer.claim(self.leases.create_lease()):
                step = RunningStep(task_ids=(delivery.task_id,))
                self.running.start(self.deliverer.deliver(delivery), "delivery", step)
        return bool(due or queued or has_webhooks or due_work.queue_deadline_at <= now)

    def _free_submissions(self, provider: str) -> int:
        return self.running.free_slots(TaskState.QUEUED, self.submissions.slots_of(provider))

    async def _claim(self, state: TaskState, limit: int) -> list[Task]:
        return await self.tasks.claim(state, now=self.clock.now(), lease=self.leases.create_lease(), limit=limit)

    async def _start_all(self, tasks: Sequence[Task]) -> None:
        """Start the step of each task, unless it still runs here: its lease ended, but its outcome is needed."""
        for task in tasks:
            if self.running.has_step_of(task.id, task.state):
                await self.tasks.renew([(task.id, task.leased_by)], self.clock.now() + MAX_SLEEP_SECONDS)
            else:
                self._start_step(task)

    def _start_step(self, task: Task, work: Work | None = None) -> None:
        """Start the step of a task. work: in place of that of its state."""
        slots = self.submissions.slots_of(task.provider) if task.state == TaskState.QUEUED else SHARED_SLOTS
        step = RunningStep(task_ids=(task.id,), state=task.state, slots=slots, lease_holder=task.leased_by)
        # after an error it is repeated when its lease ends
        record_crash = partial(self.steps.record_crash, task)
        self.running.start(work() if work else self.steps.run(task), task.state.value, step, record_crash)

    async def _start_retention(self, state: TaskState) -> None:
        """Start one step for many ended tasks; one such step at a time and state."""
        if not self.running.free_slots(state):
            return
        if tasks := await self.retention.take_due(state, self.leases.create_lease()):
            ids = tuple(task.id for task in tasks)
            step = RunningStep(task_ids=ids, state=state, lease_holder=tasks[0].leased_by)
            self.running.start(self.retention.run(tasks), "retention", step)

    def _start_housekeeping(self) -> None:
        now = self.clock.now()
        if now - self.last_housekeeping < retention.HOUSEKEEPING_SECONDS or self.clock_guard.deletion_paused:
            return
        self.last_housekeeping = now
        self.running.start(self.retention.delete_leftovers_once(), "housekeeping")
        self.running.start(self.balances.refresh(), "balance")
        self.running.start(self.move_orphans(), "orphans")
        for name, chore in self.chores.items():
            self.running.start(chore(), name)

    async def move_orphans(self) -> None:
        """Move queued orders of providers that are no longer configured to others that can serve them."""
        for task in await self.submissions.claim_orphans(self.leases.create_lease(), limit=MAX_ORPHANS):
            record_crash = partial(self.steps.record_crash, task)
            await self.running.contain_errors(self.steps.run(task), task.id, task.state.value, record_crash)

    # -- stopping

    async def drain(self) -> None:
        """Wait for running steps, cancel the rest, and make their tasks and webhooks due for other workers at once."""
        await self.running.wait(self.drain_seconds)
        held = await self.running.cancel_all(held_too=False)
        await self.running.wait(self.held_drain_seconds - self.drain_seconds)
        held += await self.running.cancel_all(held_too=True)
        await self.tasks.database.flush()  # statements that a step handed over are executed all the same
        try:
            await self.tasks.renew(held, 0.0)
            await self.deliverer.release()
        except StorageError as error:
            log.error("leases could not be released", action="store_unavailable", why=str(error))
