"""Responses of polls, kept as bytes until their task changes.

Where the database names the rows that change (`RowChanges`), a kept response is known to be current without reading the
database; otherwise, and after commits of other processes, one point read of the row's version shows it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from broker.api.http.responses import CachedResponse, data_document
from broker.api.native.completed_tasks import CompletedTasks
from broker.clock import Clock
from broker.i18n import Language
from broker.presenter import Progress, TaskData, TaskPresenter
from broker.tasks.eta import EtaEstimator
from broker.tasks.queries import TaskQueries
from storage.errors import StorageError
from storage.ids import TASK_ID
from storage.sql.row_changes import RowChanges
from storage.sql.scope import CAPABILITY
from storage.tasks import Task

MAX_CACHE_BYTES: Final = 16 * 2**20
MAX_ASKED: Final = 4096
MIN_FRESH_SECONDS: Final = 2.0
_UNKNOWN: Final = (None, 0.0)


@dataclass(kw_only=True, slots=True)
class _Entry:
    """The responses of one version of a task."""

    version: int
    """Of the row."""
    epoch: int
    """In which the version was seen: other processes have not changed it since."""
    responses: dict[Language, tuple[CachedResponse, float]] = field(default_factory=dict)
    """With the moment when the queue position or the estimate may have changed without the row; monotonic."""

    def size(self) -> int:
        return sum(len(response.body) for response, _ in self.responses.values())


@dataclass
class TaskCache:
    """Least recently used cache of task responses, by task, row version and language.

    The ETag is a hash of the response, so a change of the row that callers cannot see is still "not modified".
    """

    clock: Clock
    queries: TaskQueries
    eta: EtaEstimator
    presenter: TaskPresenter
    completed: CompletedTasks
    changes: RowChanges | None = None
    """Of the table of tasks; None if the version must be read for every response."""
    max_bytes: int = MAX_CACHE_BYTES
    _entries: OrderedDict[str, _Entry] = field(default_factory=OrderedDict)
    _asked: set[str] = field(default_factory=set)
    """Completed tasks that were polled and are not kept: few are polled again, and those would push out active ones."""
    _not_completed: dict[str, int] = field(default_factory=dict)
    """Tasks that were read for a poll and had not completed, and the epoch: they need not be read so again."""
    _dropped: int = 0
    """Number of reports of changed rows."""
    size_bytes: int = field(default=0, init=False)
    """Sum of the bodies that are kept."""

    def __post_init__(self) -> None:
        if self.changes is not None:
            self.changes.subscribe(self._drop)

    def find(self, task_id: str, language: Language) -> CachedResponse | None:
        """Return a response that is known to be current without a look into the database."""
        entry = self._entries.get(task_id)
        if entry is None or self.changes is None or entry.epoch != self.changes.epoch():
            return None
        response = self._fresh(entry, language)
        if response is not None:
            self._entries.move_to_end(task_id)
        return response

    def find_or_load(self, task_id: str, language: Language) -> CachedResponse | None:
        """Return the response if it is known to be current, or one point read at once can tell it.

        That of a completed task is kept from the second request on.
        """
        if (found := self.find(task_id, language)) is not None or self.changes is None:
            return found
        epoch = self.changes.epoch()
        if self._not_completed.get(task_id) == epoch or not TASK_ID.fullmatch(task_id):
            return None
        try:
            loaded = self.completed.load(task_id)
        except StorageError:
            return None  # the application answers, as it does for all such errors
        if loaded is None:
            if len(self._not_completed) >= MAX_ASKED:
                self._not_completed.clear()
            self._not_completed[task_id] = epoch
            return None
        if task_id in self._asked:
            self._keep(task_id, loaded.version, epoch, language, (loaded.response, math.inf))
        elif len(self._asked) < MAX_ASKED:
            self._asked.add(task_id)
        else:
            self._asked.clear()
        return loaded.response

    async def find_current(self, task_id: str, language: Language) -> CachedResponse | None:
        """Return the response if it is known to be current, or one point read can tell it."""
        if (found := self.find_or_load(task_id, language)) is not None:
            return found
        epoch, entry = self._epoch(), self._entries.get(task_id)
        kept = self._fresh(entry, language) if entry is not None else None
        if entry is None or kept is None:
            return None
        if await self.queries.get_version(task_id) != entry.version:
            if self._entries.get(task_id) is entry:
                self._discard(task_id)
            return None
        entry.epoch = epoch
        return kept

    async def response(self, task_id: str, language: Language, *, seen: int | None = None) -> CachedResponse:
        """Return the response of a poll. Raises `ApiError` for ids without a task.

        seen: a version of the row that the caller has read. A reader sees a commit a moment before it is reported here.
        """
        entry = self._entries.get(task_id)
        if entry is not None and seen is not None and entry.version < seen:
            self._discard(task_id)
        if (found := await self.find_current(task_id, language)) is not None:
            return found
        epoch = self._epoch()
        dropped = self._dropped
        task = await self.queries.get(task_id, CAPABILITY)
        progress = await self.eta.estimate(task)
        document = data_document(await self._present(task, language, progress))
        response = CachedResponse.from_document(document, ended=task.has_ended)
        fresh_until = self.clock.monotonic() + progress.fresh_for
        # a change that was reported while the response was made may be one of this task
        if self._dropped == dropped or await self.queries.get_version(task_id) == task.version:
            self._keep(task_id, task.version, epoch, language, (response, fresh_until))
        return response

    def fresh_seconds(self, task_id: str, language: Language) -> float:
        """Return how long the kept response shows the truth if the row does not change."""
        entry = self._entries.get(task_id)
        _, fresh_until = entry.responses.get(language, _UNKNOWN) if entry is not None else _UNKNOWN
        return max(MIN_FRESH_SECONDS, fresh_until - self.clock.monotonic())

    async def task_data(self, task: Task, language: Language) -> TaskData:
        """Return a task for a list or a batch; not cached."""
        return await self._present(task, language, await self.eta.estimate(task))

    async def _present(self, task: Task, language: Language, progress: Progress) -> TaskData:
        return self.presenter.task(task, await self.queries.get_results(task), language, progress)

    def _epoch(self) -> int:
        return 0 if self.changes is None else self.changes.epoch()

    def _fresh(self, entry: _Entry, language: Language) -> CachedResponse | None:
        response, fresh_until = entry.responses.get(language, _UNKNOWN)
        return response if fresh_until == math.inf or self.clock.monotonic() < fresh_until else None

    def _keep(
        self, task_id: str, version: int, epoch: int, language: Language, kept: tuple[CachedResponse, float]
    ) -> None:
        entry = self._entries.get(task_id)
        self._discard(task_id)
        if entry is None or entry.version != version:  # one task is never shown in two versions
            entry = _Entry(version=version, epoch=epoch)
        entry.epoch = epoch
        entry.responses[language] = kept
        self._entries[task_id] = entry
        self.size_bytes += entry.size()
        while self.size_bytes > self.max_bytes and self._entries:
            _, oldest = self._entries.popitem(last=False)
            self.size_bytes -= oldest.size()

    def _drop(self, task_ids: Collection[str]) -> None:
        self._dropped += 1
        for task_id in task_ids:
            self._discard(task_id)
            self._not_completed.pop(task_id, None)

    def _discard(self, task_id: str) -> None:
        if entry := self._entries.pop(task_id, None):
            self.size_bytes -= entry.size()
