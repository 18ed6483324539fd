"""New tasks that the process which accepts them submits at once, instead of leaving them to a claim.

Where nothing but the transaction is between an order and its submission, that transaction writes the intent, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from broker.tasks.running import SHARED_SLOTS, NextSteps, RunningStep
from broker.tasks.steps.submit import PreparedSubmission, SubmitStep
from storage.sql.database import Outcome, Statement
from storage.sql.rows import changed_row
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Lease, Task


@dataclass(kw_only=True)
class Arrival:
    """The tasks of one request, as they are to be written."""

    tasks: tuple[Task, ...]
    """Queued."""
    is_promised: bool
    """They are leased, and begin here after their transaction."""
    wake: tuple[str, ...]
    """Channels of their transaction."""
    rows: tuple[Task, ...]
    """The tasks as the transaction inserts them."""
    submissions: tuple[PreparedSubmission, ...] = ()
    """Of each task, if its intent is written with it."""
    reservations: tuple[Statement, ...] = ()
    """The last statements of the transaction, two for each submission; `Stale` if one finds no capacity."""
    outcomes: Sequence[Outcome] = ()
    """What the transaction has returned; empty if it is unknown."""

    def leave_intents(self) -> None:
        """Write the tasks as queued ones: their submissions begin by themselves, each if it finds capacity."""
        self.rows, self.submissions, self.reservations = self.tasks, (), ()

    def errors_before(self, place: int) -> int | None:
        """Return the errors of a submission, as in `BegunSubmission`."""
        return int(self.outcomes[2 * place - len(self.reservations)].rows[0]["errors"]) if self.outcomes else None


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """Leases and intents of new tasks, written by the transaction that creates them."""

    submit: SubmitStep
    next_steps: NextSteps

    async def take(self, tasks: tuple[Task, ...]) -> Arrival:
        """Return new tasks as they are to be written. `finish` follows, or `abandon` after an error."""
        if self._is_lane_full(tasks):
            return Arrival(tasks=tasks, rows=tasks, is_promised=False, wake=())
        lease = await self._promise(tasks)
        if lease is None:
            return Arrival(tasks=tasks, rows=tasks, is_promised=False, wake=(DUE_CHANNEL,))
        leased = {"leased_by": lease.holder, "lease_until": lease.until}
        tasks = tuple([changed_row(task, leased) for task in tasks])
        arrival = Arrival(tasks=tasks, rows=tasks, is_promised=True, wake=())
        try:
            await self._add_intents(arrival)
        except BaseException:
            self.abandon(arrival)
            raise
        return arrival

    async def finish(self, arrival: Arrival, *, is_written: bool) -> None:
        """Begin the submissions that were promised, if their tasks are written."""
        next_steps = self.next_steps
        if not arrival.is_promised:
            if is_written and not arrival.wake and not self._is_lane_full(arrival.tasks):
                next_steps.running.tasks.database.notify(DUE_CHANNEL)  # the lane got capacity before the commit
        elif not is_written:
            self._forgo(arrival)
        elif not arrival.submissions:
            for task in arrival.tasks:
                next_steps.begin(task)
        elif next_steps.is_open:
            for place, one in enumerate(arrival.submissions):
                next_steps.begin(one.task, partial(self.submit.submit_prepared, one, arrival.errors_before(place)))
        else:
            self._forgo(arrival)
            for one in arrival.submissions:  # before the response: steps are no longer waited for
                await next_steps.running.contain_errors(self.submit.withdraw(one), one.task.id, "release")

    def abandon(self, arrival: Arrival) -> None:
        """Give up what was promised after an error; the transaction may have been committed all the same.

        An intent must not stay without its submission: its outcome would count as unknown.
        """
        next_steps = self.next_steps
        if not arrival.is_promised:
            return
        if arrival.submissions and next_steps.is_open:
            for one in arrival.submissions:
                next_steps.begin(one.task, partial(self.submit.submit_if_written, one))
            return
        self._forgo(arrival)
        for one in arrival.submissions:
            next_steps.running.start(self.submit.withdraw(one), "release", RunningStep(is_quiet=True))

    def _forgo(self, arrival: Arrival) -> None:
        for task in arrival.tasks:
            self.next_steps.forgo(task.state)

    async def _add_intents(self, arrival: Arrival) -> None:
        """Let the transaction of promised tasks write their intents, if nothing is to be done before them.

        Not on Postgres, where each order would hold its connection until the one before it is committed.
        """
        if self.submit.limits.database.skip_locked or any(task.references for task in arrival.tasks):
            return
        prepared = [await self.submit.prepare_new(task) for task in arrival.tasks]
        submissions = tuple([one for one in prepared if one is not None])
        if len(submissions) == len(prepared):
            arrival.rows, arrival.submissions = tuple([one.row for one in submissions]), submissions
            arrival.reservations = tuple([part for one in submissions for part in self.submit.reserve(one)])

    def _is_lane_full(self, tasks: Sequence[Task]) -> bool:
        """Return whether the worker of this process looks at the queue of these tasks again without being woken."""
        if not self.next_steps.is_open:
            return False
        lanes, known = self.submit.queue.lanes, None
        for task in tasks:
            if task.provider != known and not lanes.is_full(task.provider):
                return False
            known = task.provider
        return True

    async def _promise(self, tasks: Sequence[Task]) -> Lease | None:
        """Return the lease with which these tasks are written; None if the queue decides when they are submitted.

        That is so where the turn of callers, limits or slots have a say: none of the provider's orders may wait before
        them, and it takes orders now.
        """
        account, queue = tasks[0].provider, self.submit.queue
        if not self.next_steps.is_open or any(task.is_held or task.provider != account for task in tasks):
            return None
        # the cheapest question first: under load, no slot is free
        if not self.next_steps.has_slots(TaskState.QUEUED, len(tasks)) or queue.slots_of(account) != SHARED_SLOTS:
            return None
        if not await queue.router.is_available(account) or await queue.lanes.has_waiting(account):
            return None
        # the reservation decides, but only after an upload, and the slot can serve other providers meanwhile
        if any(task.references for task in tasks) and not await queue.has_capacity(account, len(tasks)):
            return None
        return self.next_steps.promise([task.id for task in tasks], TaskState.QUEUED)
