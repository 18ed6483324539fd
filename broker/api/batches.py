"""The tasks of one request together: one poll for all of them, one word to cancel them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.access import Access
from broker.api.answers import Prepared, answer, language
from broker.api.native import seconds_to_wait, unless_gone
from broker.api.views import Views
from broker.sentences import Language
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.queries import TaskQueries
from storage.tasks import SHOWN, Task

_BEST_FIRST: Final = ("completed", "failed", "canceled")


@dataclass(frozen=True, kw_only=True)
class Batches:
    queries: TaskQueries
    canceler: TaskCanceler
    access: Access
    views: Views

    async def poll(self, request: Request) -> Response:
        """How all tasks are; with `wait` not before all have ended or the time is over."""
        batch_id = request.path_params["id"]
        if seconds := seconds_to_wait(request):
            await unless_gone(request, self.queries.wait_for_batch(batch_id, seconds))
        tasks = await self.queries.get_batch(batch_id)
        document = await self._document(batch_id, tasks, language(request))
        return Prepared.of(document, ended=all(task.ended for task in tasks)).to(request)

    async def cancel(self, request: Request) -> Response:
        """Those that have not ended and whose image is not on its way yet."""
        self.access.require(request)
        batch_id = request.path_params["id"]
        tasks = await self.canceler.cancel_batch(batch_id)
        return answer(await self._document(batch_id, tasks, language(request)))

    async def _document(self, batch_id: str, tasks: Sequence[Task], speech: Language) -> dict[str, Any]:
        counts = Counter(task.status for task in tasks)
        data = {
            "id": batch_id,
            "status": _status(counts),
            "counts": {status: counts[status] for status in SHOWN},
            "tasks": [await self.views.document(task, speech) for task in tasks],
        }
        return {"success": True, "data": data}


def _status(counts: Counter[str]) -> str:
    """Unfinished while one is; then the best of the ends: one image is more than none."""
    if counts["processing"] or (counts["pending"] and len(+counts) > 1):
        return "processing"
    return "pending" if counts["pending"] else next(status for status in _BEST_FIRST if counts[status])
