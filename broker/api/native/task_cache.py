"""Responses of polls, kept as bytes: while a row's version stands, a poll is one point read."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from broker.api.http.responses import CachedResponse, data_document
from broker.clock import Clock
from broker.i18n import Language
from broker.presenter import Progress, TaskData, TaskPresenter
from broker.tasks.eta import EtaEstimator
from broker.tasks.queries import TaskQueries
from storage.sql.scope import CAPABILITY
from storage.tasks import Task

MAX_CACHE_BYTES: Final = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class _Entry:
    version: int
    """Of the row."""
    fresh_until: float
    """When the queue position or the estimate may have changed without the row; monotonic."""
    response: CachedResponse


@dataclass
class TaskCache:
    """Least recently used cache of task responses, by task, language and row version.

    The ETag is a hash of the response, so a change of the row that callers cannot see is still "not modified".
    """

    clock: Clock
    queries: TaskQueries
    eta: EtaEstimator
    presenter: TaskPresenter
    max_bytes: int = MAX_CACHE_BYTES
    _entries: OrderedDict[tuple[str, Language], _Entry] = field(default_factory=OrderedDict)
    size_bytes: int = field(default=0, init=False)
    """Sum of the bodies that are kept."""

    async def response(self, task_id: str, language: Language) -> CachedResponse:
        """Return the response of a poll. Raises `ApiError` for ids without a task."""
        version = await self.queries.get_version(task_id)
        entry = self._entries.get((task_id, language))
        now = self.clock.monotonic()
        if entry is not None and entry.version == version and now < entry.fresh_until:
            self._entries.move_to_end((task_id, language))
            return entry.response
        task = await self.queries.get(task_id, CAPABILITY)
        progress = await self.eta.estimate(task)
        document = data_document(await self._present(task, language, progress))
        response = CachedResponse.from_document(document, ended=task.has_ended)
        fresh_until = self.clock.monotonic() + progress.fresh_for
        self._keep((task_id, language), _Entry(version=task.version, fresh_until=fresh_until, response=response))
        return response

    async def task_data(self, task: Task, language: Language) -> TaskData:
        """Return a task for a list or a batch; not cached."""
        return await self._present(task, language, await self.eta.estimate(task))

    async def _present(self, task: Task, language: Language, progress: Progress) -> TaskData:
        return self.presenter.task(task, await self.queries.get_results(task), language, progress)

    def _keep(self, key: tuple[str, Language], entry: _Entry) -> None:
        old = self._entries.pop(key, None)
        self.size_bytes += len(entry.response.body) - (len(old.response.body) if old else 0)
        self._entries[key] = entry
        while self.size_bytes > self.max_bytes and self._entries:
            _, dropped = self._entries.popitem(last=False)
            self.size_bytes -= len(dropped.response.body)
