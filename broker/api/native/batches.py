"""Batches of the native dialect: the tasks of one request, polled and canceled together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.responses import CachedResponse, data_document, data_response, requested_language
from broker.api.native.schemas import BatchData, PollQuery, StatusCounts
from broker.api.native.task_cache import TaskCache
from broker.api.native.tasks import wait_unless_disconnected
from broker.i18n import Language
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.queries import TaskQueries
from storage.tasks import Task

_BEST_FIRST: Final = ("completed", "failed", "canceled")


@dataclass(frozen=True, kw_only=True)
class BatchRoutes:
    queries: TaskQueries
    canceler: TaskCanceler
    cache: TaskCache

    async def get_batch(self, request: Request) -> Response:
        """Get all tasks of one request."""
        batch_id = request.path_params["id"]
        if seconds := PollQuery.read(request).wait:
            await wait_unless_disconnected(request, self.queries.wait_for_batch(batch_id, seconds))
        tasks = await self.queries.get_batch(batch_id)
        document = data_document(await self._present(batch_id, tasks, requested_language(request)))
        ended = all(task.has_ended for task in tasks)
        return CachedResponse.from_document(document, ended=ended).respond(request)

    async def cancel_batch(self, request: Request) -> Response:
        """Cancel all tasks of one request.

        Those that have not ended, and whose image is not being downloaded.
        """
        batch_id = request.path_params["id"]
        tasks = await self.canceler.cancel_batch(batch_id)
        return data_response(await self._present(batch_id, tasks, requested_language(request)))

    async def _present(self, batch_id: str, tasks: Sequence[Task], language: Language) -> BatchData:
        counts = Counter(task.status for task in tasks)
        return BatchData(
            id=batch_id,
            status=_batch_status(counts),
            counts=StatusCounts(**{status: counts[status] for status in StatusCounts.model_fields}),
            tasks=[await self.cache.task_data(task, language) for task in tasks],
        )


def _batch_status(counts: Counter[str]) -> str:
    """Unfinished while one task is; then the best end, because one image is more than none."""
    if counts["processing"] or (counts["pending"] and len(+counts) > 1):
        return "processing"
    return "pending" if counts["pending"] else next(status for status in _BEST_FIRST if counts[status])
