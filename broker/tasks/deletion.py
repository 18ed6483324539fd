"""Deletion of ended tasks on request of their callers, before retention deletes them."""

from __future__ import annotations

from dataclasses import dataclass

from broker.errors import ApiError
from broker.tasks import lifecycle
from broker.tasks.queries import TaskQueries
from broker.tasks.transitions import Transitions
from storage.sql.rows import in_clause
from storage.sql.scope import Scope
from storage.tables import Tables


@dataclass(frozen=True, kw_only=True)
class TaskDeleter:
    """Deletes tasks with their images, webhooks and callbacks; a tombstone and the ledger remain."""

    queries: TaskQueries
    transitions: Transitions
    tables: Tables

    async def delete_task(self, task_id: str, scope: Scope) -> None:
        """Delete an ended task; nothing of it is shown any more. Raises `ApiError("conflict")` for an unfinished one.

        The rows are gone at once, the files with the next step of retention, which is due now. References stay for as
        long as another task of their request needs them.
        """
        task = await self.queries.get(task_id, scope)
        if not task.has_ended:
            raise ApiError("conflict", f"This task has not ended: it is {task.status}. Cancel it first.")
        await self.transitions.apply(
            task,
            lambda row, _: lifecycle.delete(row, self.transitions.clock.now(), self.transitions.policy),
            also=(
                self.tables.images.delete_of_expired(in_clause([task_id])),
                *self.tables.deliveries.delete_of_expired(in_clause([task_id])),
                self.tables.callbacks.delete_of_expired(task_id),
                self.tables.attempts.delete_words_of_expired(in_clause([task_id])),
            ),
            is_leased=False,
        )
