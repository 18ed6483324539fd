"""New tasks that the process which accepts them submits at once, instead of leaving them to a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.tasks.routing import Router
from broker.tasks.running import SHARED_SLOTS, NextSteps
from broker.tasks.submissions import SubmissionQueue
from storage.sql.rows import changed_row
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Lease, Task


class Arrival(NamedTuple):
    """The tasks of one request, as they are to be written."""

    tasks: tuple[Task, ...]
    is_promised: bool
    """They are leased, and begin here after their transaction."""
    wake: tuple[str, ...]
    """Channels of their transaction."""


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """Leases of new tasks, written by the transaction that creates them."""

    submissions: SubmissionQueue
    router: Router
    next_steps: NextSteps

    async def take(self, tasks: tuple[Task, ...]) -> Arrival:
        """Return new tasks as they are to be written. `finish` follows in any case."""
        if self._is_lane_full(tasks):
            return Arrival(tasks=tasks, is_promised=False, wake=())
        lease = await self._promise(tasks)
        if lease is None:
            return Arrival(tasks=tasks, is_promised=False, wake=(DUE_CHANNEL,))
        leased = {"leased_by": lease.holder, "lease_until": lease.until}
        return Arrival(tasks=tuple([changed_row(task, leased) for task in tasks]), is_promised=True, wake=())

    def finish(self, arrival: Arrival, *, is_written: bool) -> None:
        """Begin the submissions that were promised, if their tasks are written."""
        if not arrival.is_promised:
            if is_written and not arrival.wake and not self._is_lane_full(arrival.tasks):
                self.next_steps.running.tasks.database.notify(DUE_CHANNEL)  # the lane got capacity before the commit
            return
        for task in arrival.tasks:
            if is_written:
                self.next_steps.begin(task)
            else:
                self.next_steps.forgo(task.state)

    def _is_lane_full(self, tasks: Sequence[Task]) -> bool:
        """Return whether the worker of this process looks at the queue of these tasks again without being woken."""
        accounts = {task.provider for task in tasks} if len(tasks) > 1 else (tasks[0].provider,)
        return self.next_steps.is_open and all(map(self.submissions.lanes.is_full, accounts))

    async def _promise(self, tasks: Sequence[Task]) -> Lease | None:
        """Return the lease with which these tasks are written; None if the queue decides when they are submitted.

        That is so where the turn of callers, limits or slots have a say: none of the provider's orders may wait before
        them, and it takes orders now.
        """
        account = tasks[0].provider
        if not self.next_steps.is_open or any(task.is_held or task.provider != account for task in tasks):
            return None
        status = (await self.router.statuses()).get(account)
        if status is None or not status.is_available or self.submissions.slots_of(account) != SHARED_SLOTS:
            return None
        if not self.next_steps.has_slots(TaskState.QUEUED, len(tasks)) or await self.submissions.lanes.has_waiting(
            account
        ):
            return None
        # the reservation decides, but only after an upload, and the slot can serve other providers meanwhile
        if any(task.references for task in tasks) and not await self.submissions.has_capacity(account, len(tasks)):
            return None
        return self.next_steps.promise([task.id for task in tasks], TaskState.QUEUED)
