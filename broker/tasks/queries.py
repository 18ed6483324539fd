"""Task queries: reading tasks, batches and results, and waiting for changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final

from broker.errors import ApiError
from storage.ids import BATCH_ID, TASK_ID
from storage.images import Images, StoredImage
from storage.sql.scope import Scope
from storage.states import TaskState
from storage.tasks import Task, Tasks, task_channel

POLL_SECONDS: Final = 2.0
"""A waiting caller reads the row this often even without a notification."""


@dataclass(kw_only=True)
class TaskQueries:
    """Reads tasks for callers. A task outside the scope is not found."""

    tasks: Tasks
    images: Images
    closing: bool = False
    """Set when the server stops: every wait then ends."""

    async def get(self, task_id: str, scope: Scope) -> Task:
        """Return the task. Raises `ApiError`: task_not_found, or task_expired for a week after retention."""
        task = await self.tasks.get(task_id) if TASK_ID.fullmatch(task_id) else None
        if task is None or not scope.includes(task.caller):
            raise ApiError("task_not_found", "There is no task with this id. Check the id, or create the task again.")
        if task.state == TaskState.EXPIRED:
            raise ApiError("task_expired", "This task and its images are deleted: on request, or by retention.")
        return task

    async def get_batch(self, batch_id: str, scope: Scope) -> list[Task]:
        """Return the tasks of one request that are not expired. Raises `ApiError` like `get`."""
        found = await self.tasks.list_of_batch(batch_id) if BATCH_ID.fullmatch(batch_id) else []
        tasks = [task for task in found if scope.includes(task.caller)]
        if not tasks:
            raise ApiError("task_not_found", "There is no batch with this id. Check the id, or create the tasks again.")
        kept = [task for task in tasks if task.state != TaskState.EXPIRED]
        if not kept:
            raise ApiError("task_expired", "The tasks of this batch are deleted: on request, or by retention.")
        return kept

    async def get_version(self, task_id: str) -> int | None:
        """Return the row's version, or None if the task does not exist. Cheap."""
        return await self.tasks.get_version(task_id) if TASK_ID.fullmatch(task_id) else None

    async def get_results(self, task: Task) -> list[StoredImage]:
        """Return the images of a completed task, in order."""
        return await self.images.list_of_owner(task.id, "result") if task.state == TaskState.SUCCEEDED else []

    async def get_image_tasks(self, image: StoredImage, scope: Scope) -> list[Task]:
        """Return the tasks of an image: the one that made it, or those of the request it was a reference of."""
        return [task for task in await self.tasks.list_of_owner(image.owner) if scope.includes(task.caller)]

    async def list_newest(
        self,
        scope: Scope,
        *,
        status: str | None,
        limit: int,
        before: tuple[float, str] | None,
        model: str | None = None,
        words: Sequence[str] = (),
    ) -> list[Task]:
        """Return one page, newest first. words: all occur in the prompt; only for a scope whose prompts may be read."""
        return await self.tasks.list_newest(scope, status=status, limit=limit, before=before, model=model, words=words)

    async def wait(self, task_id: str, scope: Scope) -> None:
        """Return when the task has ended, or when the server stops."""
        async with aclosing(self.changes(task_id, scope)) as changes:
            async for _ in changes:
                pass

    async def wait_for_batch(self, batch_id: str, scope: Scope) -> None:
        """Return when all tasks of a batch have ended, or when the server stops."""
        for task in await self.get_batch(batch_id, scope):
            with suppress(ApiError):  # deleted since: the others are still worth waiting for
                await self.wait(task.id, scope)

    async def changes(self, task_id: str, scope: Scope) -> AsyncGenerator[Task, None]:
        """Yield the task now and after each possible change, until it ends or the server stops.

        A consumer that stops earlier closes the generator (`contextlib.aclosing`).
        """
        with self.tasks.database.listen(task_channel(task_id)) as subscription:
            while not self.closing:
                task = await self.get(task_id, scope)
                yield task
                if task.has_ended:
                    return
                await subscription.wait(POLL_SECONDS)
