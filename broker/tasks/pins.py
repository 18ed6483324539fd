"""Pins: tasks that their callers keep beyond retention."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from broker.accounts.quotas import QuotaExceeded, QuotaState
from broker.tasks import lifecycle
from broker.tasks.queries import TaskQueries
from broker.tasks.transitions import Transitions
from storage.accounts.owner_locks import lock_owner_account
from storage.sql.database import Statement
from storage.sql.scope import Scope
from storage.tasks import Task


@dataclass(frozen=True, kw_only=True)
class TaskPins:
    """Pins and unpins tasks. References stay for as long as one task of their request does."""

    queries: TaskQueries
    transitions: Transitions
    read_limit: Callable[[str], Awaitable[int | None]]
    """Owner → how many pinned tasks it may have, over all processes; None: any number."""

    async def pin_task(self, task_id: str, scope: Scope) -> Task:
        """Keep a task, ended or not, beyond retention; return it.

        Raises `ApiError`: quota_exceeded, or like `TaskQueries.get`.
        """
        task = await self.queries.get(task_id, scope)
        if task.pinned_at is not None:
            return task
        limit = await self.read_limit(task.caller)
        applied = await self.transitions.apply(
            task,
            lambda row, _: lifecycle.pin(row, self.transitions.clock.now(), self.transitions.policy),
            also=self._check_limit(task, limit),
            is_leased=False,
        )
        task = await self.queries.get(task_id, scope)
        if applied is None or task.pinned_at is None:
            raise too_many_pins(limit)
        return task

    async def unpin_task(self, task_id: str, scope: Scope) -> Task:
        """Hand a task back to retention, which deletes it at once if its time is over; return it."""
        task = await self.queries.get(task_id, scope)
        await self.transitions.apply_own(task, lifecycle.unpin, is_leased=False)
        return await self.queries.get(task_id, scope)

    def _check_limit(self, task: Task, limit: int | None) -> Sequence[Statement]:
        if limit is None:
            return ()
        return (lock_owner_account(task.caller), self.transitions.tasks.check_pins(task, limit))


def too_many_pins(limit: int | None) -> QuotaExceeded:
    """Return the error of a pin beyond the limit of its owner."""
    state = QuotaState(name="pins", limit=limit, used=limit or 0, left=0, resets_at=None)
    message = f"You have pinned {limit} tasks, which is the limit. Unpin one first."
    return QuotaExceeded(message, state, retry_after=None)
