"""Task queries: reading tasks, batches and results, and waiting for changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from broker.errors import ApiError
from broker.tasks.waiting.versions import TaskVersions
from broker.tasks.waiting.watcher import TaskWatch, TaskWatcher
from storage.ids import BATCH_ID, TASK_ID
from storage.images import Images, StoredImage
from storage.lists.newest_tasks import NewestTasks
from storage.sql.scope import Scope
from storage.states import TaskState
from storage.tasks import Task, Tasks

RECHECK_SECONDS: Final = 2.0
CLOSING_SECONDS: Final = 0.1


@dataclass(kw_only=True)
class TaskQueries:
    """Reads tasks for callers. A task outside the scope is not found."""

    tasks: Tasks
    newest: NewestTasks
    images: Images
    watcher: TaskWatcher
    _closing: bool = False

    def __post_init__(self) -> None:
        self._versions = TaskVersions(self.tasks.database)

    @property
    def closing(self) -> bool:
        """True when the server stops: every wait then ends."""
        return self._closing

    @closing.setter
    def closing(self, value: bool) -> None:
        self._closing = value
        # a moment later, so that the responses can say that their connections end
        asyncio.get_running_loop().call_later(CLOSING_SECONDS, self.watcher.wake_all)

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
        return await self._versions.get(task_id) if TASK_ID.fullmatch(task_id) else None

    async def get_results(self, task: Task) -> list[StoredImage]:
        """Return the images of a completed task, in order."""
        return await self.images.list_of_owner(task.id, "result") if task.state == TaskState.SUCCEEDED else []

    async def get_image_tasks(self, image: StoredImage, scope: Scope) -> list[Task]:
        """Return the tasks of an image: the one that made it, or those of the request it was a reference of."""
        return [task for task in await self.tasks.list_of_owner(image.owner) if scope.includes(task.caller)]

    async def list_newest(
        self, scope: Scope, *, status: str | None, limit: int, before: tuple[float, str] | None
    ) -> list[Task]:
        """Return one page, newest first."""
        return await self.newest.list_newest(scope, status=status, limit=limit, before=before)

    async def search_newest(
        self,
        scope: Scope,
        *,
        status: str | None,
        limit: int,
        before: tuple[float, str] | None,
        model: str | None,
        words: Sequence[str],
    ) -> tuple[list[Task], Task | None]:
        """Return what of one window of tasks fits, newest first, and the last task of that window.

        words: all occur in the prompt; only for a scope whose prompts may be read.
        """
        return await self.newest.search_newest(
            scope, status=status, limit=limit, before=before, model=model, words=words
        )

    async def wait(self, task_id: str, scope: Scope) -> None:
        """Return when the task has ended, or when the server stops."""
        with self.watcher.watch(task_id) as watch:
            while not await self._look(task_id, scope, watch):
                await watch.changed.wait()

    async def wait_for_batch(self, batch_id: str, scope: Scope) -> None:
        """Return when all tasks of a batch have ended, or when the server stops."""
        for task in await self.get_batch(batch_id, scope):
            with suppress(ApiError):  # deleted since: the others are still worth waiting for
                await self.wait(task.id, scope)

    async def changes(
        self, task_id: str, scope: Scope, seconds: Callable[[], float] = lambda: RECHECK_SECONDS
    ) -> AsyncGenerator[int | None, None]:
        """Yield the row's version now and after each possible change, until the task ends or the server stops.

        seconds: returns the time after which more than the row may have changed, like the position in the queue.
        A consumer that stops earlier closes the generator (`contextlib.aclosing`).
        """
        with self.watcher.watch(task_id) as watch:
            is_over, has_changed = self.closing, True
            while not is_over:
                if has_changed:
                    is_over = await self._look(task_id, scope, watch)
                yield watch.version
                if not is_over:
                    has_changed = await watch.changed.wait(seconds())
                    is_over = self.closing

    async def _look(self, task_id: str, scope: Scope, watch: TaskWatch) -> bool:
        """Return whether a wait is over. The row is not kept: thousands may wait."""
        if self.closing:
            return True
        task = await self.get(task_id, scope)
        watch.version = task.version
        return task.has_ended
