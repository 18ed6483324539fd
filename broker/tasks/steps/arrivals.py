"""New tasks that the process which accepts them submits at once, instead of leaving them to a claim."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from broker.tasks.routing import Router
from broker.tasks.running import SHARED_SLOTS, NextSteps
from broker.tasks.submissions import SubmissionQueue
from storage.sql.rows import changed_row
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Lease, Task


@dataclass(kw_only=True)
class Arrival:
    """The tasks of one request, on their way into the database."""

    tasks: tuple[Task, ...]
    wake: tuple[str, ...] = ()
    """Channels of their transaction."""
    is_written: bool = False
    """Set by the caller after the transaction."""


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """Leases of new tasks, written by the transaction that creates them."""

    submissions: SubmissionQueue
    router: Router
    next_steps: NextSteps

    @asynccontextmanager
    async def taking(self, tasks: tuple[Task, ...]) -> AsyncIterator[Arrival]:
        """Provide new tasks as they are to be written; begin their submissions once `is_written` says so."""
        lease = await self._promise(tasks)
        if lease is None:
            yield Arrival(tasks=tasks, wake=(DUE_CHANNEL,))
            return
        leased = {"leased_by": lease.holder, "lease_until": lease.until}
        arrival = Arrival(tasks=tuple(changed_row(task, leased) for task in tasks))
        try:
            yield arrival
        finally:
            for task in arrival.tasks:
                if arrival.is_written:
                    self.next_steps.begin(task)
                else:
                    self.next_steps.forgo(task.state)

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
        if await self.submissions.has_waiting(account):
            return None
        # the reservation decides, but only after an upload, and the slot can serve other providers meanwhile
        if any(task.references for task in tasks) and not await self.submissions.has_capacity(account, len(tasks)):
            return None
        return self.next_steps.promise([task.id for task in tasks], TaskState.QUEUED)
