"""The steps in progress in one process: slots by state, leases and their renewal, errors contained."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, TypeAlias, TypeVar

from broker.clock import Clock, seconds_to_beat
from broker.logs import log, safe_exc_info
from broker.metrics import Metrics
from broker.notifications.deliverer import Deliverer
from storage.errors import StorageError
from storage.ids import random_digits
from storage.sql.pubsub import Subscription
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Lease, Task, Tasks

T = TypeVar("T")
Work: TypeAlias = Callable[[], Awaitable[None]]
"""Begins what is to be done with one task, and returns its end."""

CONCURRENCY: Final = {
    TaskState.QUEUED: 64,
    TaskState.SUBMITTING: 16,
    TaskState.WAITING: 64,
    TaskState.FETCHING: 64,
}
"""Steps at a time, by state: a provider that hangs, or slow downloads, must not delay the other steps.

Of FETCHING twice as many as download at a time: a result that waits here needs no claim, which reads the row again.
"""
HELD_CONCURRENCY: Final = 32
"""Submissions at a time to each provider that answers with the result, after minutes: they have slots of their own."""
OWN_CONCURRENCY: Final = 32
"""Submissions at a time to all accounts of users together, beside the others."""
ACCOUNT_CONCURRENCY: Final = 8
"""Of them to one account: a provider that answers one user slowly delays neither the others nor the operator."""
MAX_SLEEP_SECONDS: Final = 1.0
"""A worker looks for due work this often even without a notification."""
MIN_GRACE_SECONDS: Final = 3.0
"""Shortest delay of recovery after an outage of the database."""


class SlotUse(NamedTuple):
    """Whose slots a submission takes; by default those of all submissions together.

    A tuple, because each step looks its slots up several times, and the hash of a dataclass takes long.
    """

    held_by: str = ""
    """The account at which it may wait for minutes, and therefore has slots of its own; empty for all others."""
    account: str = ""
    """The account of a user; empty for one of the operator."""


SHARED_SLOTS: Final = SlotUse()


class RunningStep(NamedTuple):
    """A step in progress."""

    task_ids: tuple[str, ...] = ()
    state: TaskState | None = None
    """Whose slot it takes; None if it takes none."""
    slots: SlotUse = SHARED_SLOTS
    lease_holder: str = ""
    """Of its tasks' lease; empty without one."""
    is_quiet: bool = False
    """Nothing waits for its end, so that wakes no worker."""


STEP_WITHOUT_TASKS: Final = RunningStep()


@dataclass(kw_only=True)
class RunningSteps:
    """The steps of one process."""

    tasks: Tasks
    metrics: Metrics
    _steps: dict[asyncio.Task[bool], RunningStep] = field(default_factory=dict)
    _used: dict[tuple[TaskState | None, SlotUse], int] = field(default_factory=dict)
    """Number of steps by the slots that they take."""
    _stepping: dict[tuple[TaskState, str], int] = field(default_factory=dict)
    """Number of steps of each task, by the state that names them."""
    _ends: dict[tuple[TaskState, str], Subscription] = field(default_factory=dict)
    """Notified at the end of the steps of a task, by the state that names them."""

    @property
    def count(self) -> int:
        return len(self._steps)

    def free_slots(self, state: TaskState, slots: SlotUse = SHARED_SLOTS) -> int:
        """Return the free slots of a state; a state outside `CONCURRENCY` has one. slots: of which kind."""
        if slots.account:
            used = [(one, count) for (of, one), count in self._used.items() if of == state and one.account]
            of_account = sum(count for one, count in used if one.account == slots.account)
            return min(OWN_CONCURRENCY - sum(count for _, count in used), ACCOUNT_CONCURRENCY - of_account)
        return (HELD_CONCURRENCY if slots.held_by else CONCURRENCY.get(state, 1)) - self._used.get((state, slots), 0)

    def has_step_of(self, task_id: str, state: TaskState) -> bool:
        """Return whether a step of this task and state is in progress here."""
        return (_step_state(state), task_id) in self._stepping

    async def wait_for_submission(self, task_id: str, timeout_seconds: float) -> bool:
        """Wait until the submission of a task has ended that is in progress here; return whether there was one."""
        key = (TaskState.SUBMITTING, task_id)
        if key not in self._stepping:
            return False
        await self._ends.setdefault(key, Subscription()).wait(timeout_seconds)
        return True

    def start(
        self,
        work: Awaitable[object],
        name: str,
        step: RunningStep = STEP_WITHOUT_TASKS,
        after_error: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Begin a step, with its errors contained; a worker is woken when it ends, if anything may wait for that.

        after_error: as of `contain_errors`.
        """
        contained = self.contain_errors(work, step.task_ids[0] if step.task_ids else "", name, after_error)
        future = asyncio.create_task(contained, context=Context())  # not that of a request that brought a callback
        self._steps[future] = step
        self._count(step, 1)
        future.add_done_callback(partial(self._remove, work))

    def _remove(self, work: Awaitable[object], future: asyncio.Task[bool]) -> None:
        if future.cancelled() and isinstance(work, Coroutine):
            work.close()  # of a step that was cancelled before it began
        step = self._steps.pop(future)
        # while slots were free, all that was due has been claimed
        was_awaited = not step.is_quiet and (step.state is None or self.free_slots(step.state, step.slots) <= 0)
        self._count(step, -1)
        if was_awaited:
            self.tasks.database.notify(DUE_CHANNEL)

    def reserve(self, state: TaskState, count: int) -> None:
        """Count shared slots as used by steps that have not begun yet; negative: no longer."""
        _add_to(self._used, (state, SHARED_SLOTS), count)

    def _count(self, step: RunningStep, difference: int) -> None:
        _add_to(self._used, (step.state, step.slots), difference)
        if step.state is None:
            return
        state = _step_state(step.state)
        for task_id in step.task_ids:
            key = state, task_id
            if not _add_to(self._stepping, key, difference) and key in self._ends:
                self._ends.pop(key).notify()

    async def contain_errors(
        self,
        work: Awaitable[object],
        task_id: str,
        name: str,
        after_error: Callable[[], Awaitable[object]] | None = None,
    ) -> bool:
        """Await work; return whether it succeeded. An error of one task must not stop the others.

        after_error: further work after one, whose errors are contained, too.
        """
        try:
            await work
        except StorageError as error:
            log.error("a step could not be stored", action="store_unavailable", task=task_id, why=str(error))
        except Exception as error:
            self.metrics.steps_failed.labels(name).inc()
            log.error(
                "a step failed unexpectedly",
                action="step_failed",
                task=task_id,
                step=name,
                exc_info=safe_exc_info(error),
            )
        else:
            return True
        if after_error is not None:
            await self.contain_errors(after_error(), task_id, "crash")
        return False

    def held_leases(self) -> list[tuple[str, str]]:
        """Return (task id, lease holder) of every lease that a step needs."""
        return _leases(self._steps.values())

    async def wait(self, timeout_seconds: float | None = None) -> None:
        """Wait until all present steps have ended."""
        if self._steps:
            await asyncio.wait(list(self._steps), timeout=timeout_seconds)

    async def cancel_all(self, *, held_too: bool) -> list[tuple[str, str]]:
        """Cancel the steps that are left; return the leases they held. held_too: also those that wait for a result."""
        left = {future: step for future, step in self._steps.items() if held_too or not step.slots.held_by}
        for future in left:
            future.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return _leases(left.values())


@dataclass(kw_only=True)
class NextSteps:
    """Steps that begin with the row that this process has just written, under a lease of the same transaction.

    So they need no notification, no query and no claim. If the process dies, they are due when the lease ends.
    """

    clock: Clock
    running: RunningSteps
    lease_seconds: float
    start: Callable[[Task, Work | None], None] | None = field(default=None, repr=False)
    """Begins the work of a leased task, or the step of its state; None while no worker runs in this process."""

    @property
    def is_open(self) -> bool:
        """Return whether a worker runs in this process."""
        return self.start is not None

    def has_slots(self, state: TaskState, count: int) -> bool:
        """Return whether so many steps could be promised now."""
        return self.running.free_slots(state) >= count

    def promise(self, task_ids: Sequence[str], state: TaskState) -> Lease | None:
        """Return the lease of steps that begin here after the commit; None if they are left to a claim.

        Their slots are kept until `begin` or `forgo`.
        """
        if not self.is_open or not self.has_slots(state, len(task_ids)):
            return None
        if any(self.running.has_step_of(task_id, state) for task_id in task_ids):
            return None
        self.running.reserve(state, len(task_ids))
        return new_lease(self.clock, self.lease_seconds)

    def begin(self, task: Task, work: Work | None = None) -> None:
        """Begin the step of a task that has a promised lease now; if the worker has stopped, end the lease.

        work: in place of the step of its state.
        """
        self.running.reserve(task.state, -1)  # the step takes its slot now
        if self.start is not None:
            self.start(task, work)
        else:
            ending = self.running.tasks.renew([(task.id, task.leased_by)], 0.0)
            self.running.start(ending, "release", RunningStep(is_quiet=True))

    def forgo(self, state: TaskState) -> None:
        """Give the slot of a promised step back."""
        was_full = self.running.free_slots(state) <= 0
        self.running.reserve(state, -1)
        if was_full:  # a worker may wait for it
            self.running.tasks.database.notify(DUE_CHANNEL)


@dataclass(kw_only=True)
class LeaseKeeper:
    """Renews the leases of running steps and deliveries, and delays recovery after a database outage.

    During an outage no lease can be renewed. Before other workers recover submissions, the worker that holds a
    provider's response gets the time to store it.
    """

    clock: Clock
    running: RunningSteps
    deliverer: Deliverer
    lease_seconds: float
    _recover_from: float = field(init=False)

    def __post_init__(self) -> None:
        self._recover_from = self.clock.monotonic() + MIN_GRACE_SECONDS  # an outage may have just ended

    @property
    def may_recover(self) -> bool:
        """Return whether submissions without a lease may be recovered."""
        return self.clock.monotonic() >= self._recover_from

    def record_outage(self) -> None:
        self._recover_from = self.clock.monotonic() + max(self.lease_seconds, MIN_GRACE_SECONDS)

    def create_lease(self) -> Lease:
        return new_lease(self.clock, self.lease_seconds)

    async def keep(self) -> None:
        """Renew leases until canceled."""
        while True:
            await asyncio.sleep(seconds_to_beat(self.lease_seconds / 3))
            try:
                until = self.clock.now() + self.lease_seconds
                await self.running.tasks.renew(self.running.held_leases(), until)
                await self.deliverer.renew_leases(until)
            except StorageError as error:
                log.error("leases could not be renewed", action="store_unavailable", why=str(error))
                self.record_outage()


def new_lease(clock: Clock, seconds: float) -> Lease:
    """Return a lease with a new holder."""
    return Lease(holder=random_digits(16), until=clock.now() + seconds)


def _step_state(state: TaskState) -> TaskState:
    """Return the state that names a step: a submission begins in QUEUED and goes on in SUBMITTING."""
    return TaskState.SUBMITTING if state == TaskState.QUEUED else state


def _add_to(counter: dict[T, int], key: T, difference: int) -> int:
    """Change a count, and return it; one of 0 is not kept. Of a dict: what a Counter adds is written in Python."""
    counter[key] = count = counter.get(key, 0) + difference
    if not count:
        del counter[key]
    return count


def _leases(steps: Iterable[RunningStep]) -> list[tuple[str, str]]:
    return [(task_id, step.lease_holder) for step in steps if step.lease_holder for task_id in step.task_ids]
