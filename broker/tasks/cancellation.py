"""Cancellation of tasks and batches by their callers."""

from __future__ import annotations

from dataclasses import dataclass

from broker.errors import ApiError, ProviderError
from broker.logs import log
from broker.tasks import lifecycle
from broker.tasks.accounts.pools import ProviderAccounts
from broker.tasks.queries import TaskQueries
from broker.tasks.transitions import Transitions
from storage.sql.scope import Scope
from storage.states import TaskState
from storage.tasks import Task


@dataclass(frozen=True, kw_only=True)
class TaskCanceler:
    """Cancels tasks, here and at their provider."""

    queries: TaskQueries
    transitions: Transitions
    accounts: ProviderAccounts

    async def cancel_task(self, task_id: str, scope: Scope) -> Task:
        """Return the canceled task. Raises `ApiError("conflict")` if it has ended or its image is being downloaded."""
        task = await self.queries.get(task_id, scope)
        if task.has_ended:
            raise ApiError("conflict", f"This task has ended: it is {task.status}.")
        await self.transitions.apply_own(task, lifecycle.cancel, is_leased=False)
        task = await self.queries.get(task_id, scope)
        if task.state != TaskState.CANCELED:
            raise ApiError("conflict", f"This task cannot be canceled any more: it is {task.status}.")
        await self.cancel_job(task)
        return task

    async def cancel_batch(self, batch_id: str, scope: Scope) -> list[Task]:
        """Cancel each task that can be canceled, and return all. Raises `ApiError("conflict")` if there was none."""
        canceled = 0
        for task in await self.queries.get_batch(batch_id, scope):
            try:
                await self.cancel_task(task.id, scope)
            except ApiError as error:
                if error.code != "conflict":
                    raise
            else:
                canceled += 1
        if not canceled:
            raise ApiError("conflict", "No task of this batch can be canceled any more.")
        return await self.queries.get_batch(batch_id, scope)

    async def cancel_job(self, task: Task) -> None:
        """Ask the provider to cancel the current job of a task. It may go on all the same, and be billed."""
        provider = await self.accounts.find_bound(task)
        if provider is None or task.job_id is None:
            return
        try:
            await provider.cancel(task.job_id)
        except ProviderError as error:
            log.info(
                "the provider did not cancel the job", action="provider_cancel_failed", task=task.id, why=error.summary
            )
