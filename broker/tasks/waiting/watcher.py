"""Waiting for changes of tasks: one watcher for all callers that wait, instead of a poll by each of them.

A notification of the change normally ends a wait. The watcher finds what no notification told: it compares the
versions of all awaited tasks, some hundred per read; where the database names changed rows, only after commits of
other processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from broker.logs import log
from broker.tasks.waiting.versions import MAX_TASKS_PER_READ, TaskVersions
from storage.errors import StorageError
from storage.sql.database import Database
from storage.sql.pubsub import Subscription
from storage.sql.row_changes import RowChanges
from storage.tasks import task_channel

WATCH_SECONDS: Final = 2.0
"""Longest time until a change without a notification is found."""


class TaskWatch:
    """One caller's wait for changes of one task."""

    __slots__ = ("changed", "version")

    def __init__(self, changed: Subscription) -> None:
        self.changed = changed
        self.version = 0
        """Of the row that the caller has seen."""


@dataclass(kw_only=True)
class TaskWatcher:
    """Wakes callers that wait for changes of tasks. changes: of the table of tasks, if the database names them."""

    database: Database
    changes: RowChanges | None
    seconds: float = WATCH_SECONDS
    _watches: dict[str, set[TaskWatch]] = field(default_factory=dict)
    _watching: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._versions = TaskVersions(self.database)
        if self.changes is not None:
            self.changes.subscribe(self._wake)

    @contextmanager
    def watch(self, task_id: str) -> Iterator[TaskWatch]:
        """Watch a task while the block runs."""
        with self.database.listen(task_channel(task_id)) as changed:
            watch = TaskWatch(changed)
            self._watches.setdefault(task_id, set()).add(watch)
            if self._watching is None:
                self._watching = asyncio.create_task(self._run(), name="task-watcher")
            try:
                yield watch
            finally:
                self._watches[task_id].discard(watch)
                if not self._watches[task_id]:
                    del self._watches[task_id]
                if not self._watches:
                    self._watching.cancel()
                    self._watching = None

    async def _run(self) -> None:
        """Wake callers until no one waits."""
        epoch: int | None = None
        while True:
            await asyncio.sleep(self.seconds)
            before, epoch = epoch, self.changes.epoch() if self.changes is not None else None
            if epoch is not None and epoch == before:
                continue
            try:
                await self._compare_versions()
            except StorageError as error:
                log.warning("awaited tasks cannot be read", action="store_retry", why=str(error))
                epoch = None

    async def _compare_versions(self) -> None:
        task_ids = list(self._watches)
        for start in range(0, len(task_ids), MAX_TASKS_PER_READ):
            some = task_ids[start : start + MAX_TASKS_PER_READ]
            versions = await self._versions.read_all(some)
            for task_id in some:
                if any(watch.version != versions.get(task_id) for watch in self._watches.get(task_id, ())):
                    self._wake([task_id])

    def wake_all(self) -> None:
        self._wake(self._watches)

    def _wake(self, task_ids: Collection[str]) -> None:
        for task_id in task_ids:
            for watch in self._watches.get(task_id, ()):
                watch.changed.notify()
