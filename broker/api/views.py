"""A task as callers see it, and the answers kept ready for those who poll."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from broker.api.answers import Prepared, iso
from broker.broker import Broker
from broker.sentences import Language, Sentences
from storage.images import StoredImage
from storage.tasks import State, Task

MOST_BYTES: Final = 16 * 2**20

_STAGES: Final = {
    State.QUEUED: "queued",
    State.SUBMITTING: "submitting",
    State.WAITING: "waiting",
    State.FETCHING: "downloading",
}


@dataclass
class Views:
    """Task ids into answers. An answer is kept with the row's version: while it stands, a poll is one point read.

    The tag is a hash of the answer, so that a row whose change nobody can see is still "not modified".
    """

    broker: Broker
    sentences: Sentences
    most_bytes: int = MOST_BYTES
    _kept: OrderedDict[tuple[str, Language], tuple[int, Prepared]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    async def of(self, task_id: str, language: Language) -> Prepared:
        """Raises `Refusal` for ids without a task."""
        version = await self.broker.version(task_id)
        kept = self._kept.get((task_id, language))
        if kept is not None and kept[0] == version:
            self._kept.move_to_end((task_id, language))
            return kept[1]
        task = await self.broker.get(task_id)
        prepared = Prepared.of({"success": True, "data": await self.document(task, language)}, ended=task.ended)
        self._keep((task_id, language), task.version, prepared)
        return prepared

    async def document(self, task: Task, language: Language) -> dict[str, Any]:
        """The keys of the contract, no more and no fewer."""
        images = await self.broker.results(task)
        results = [_result(image) for image in images]
        error = self._error(task)
        return {
            "id": task.id,
            "status": task.status,
            "prompt": task.prompt,
            "model": task.model,
            "mode": task.mode,
            "aspectRatio": task.aspect_ratio,
            "resolution": task.resolution,
            "result": results[0]["url"] if results else None,
            "results": results,
            "error": self.sentences.say(error, language) if error else None,
            "errorDetail": _error_detail(task, error) if error else None,
            "progress": {"stage": "done" if task.ended else _STAGES[task.state]},
            "provider": task.provider,
            "attempts": task.attempt,
            "cost": None if task.cost is None else {"amount": task.cost, "unit": "credits"},
            "createdAt": iso(task.created_at),
            "updatedAt": iso(task.updated_at),
            "expiresAt": iso(task.ended_at + self.broker.rules.retention) if task.ended_at is not None else None,
            "generation": _generation(task, results),
        }

    @staticmethod
    def _error(task: Task) -> str | None:
        """The code of an end that was told; what a running task remembers of its last attempt is nobody's business."""
        if task.status not in {"failed", "canceled"}:
            return None
        return task.error_code or ("canceled" if task.state == State.CANCELED else "provider_error")

    def _keep(self, key: tuple[str, Language], version: int, prepared: Prepared) -> None:
        old = self._kept.pop(key, None)
        self._bytes += len(prepared.body) - (len(old[1].body) if old else 0)
        self._kept[key] = (version, prepared)
        while self._bytes > self.most_bytes and self._kept:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= len(dropped.body)


def _result(image: StoredImage) -> dict[str, Any]:
    return {
        "url": f"/uploads/images/{image.name}",
        "width": image.width,
        "height": image.height,
        "bytes": image.size,
        "mediaType": image.media_type,
        "sha256": image.sha256,
        "thumbnail": None,
    }


def _error_detail(task: Task, code: str) -> dict[str, Any]:
    """message: the provider's own words, in its own language."""
    return {
        "code": code,
        "retryable": task.error_retryable,
        "billed": task.billed,
        "provider": task.provider,
        "providerCode": task.provider_code,
        "message": task.error_detail,
    }


def _generation(task: Task, results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The record that older front ends put into their list."""
    if task.state != State.SUCCEEDED or not results:
        return None
    return {
        "id": task.id,
        "type": "image",
        "mode": task.mode,
        "model": task.model,
        "prompt": task.prompt,
        "url": results[0]["url"],
        "timestamp": iso(task.ended_at),
        "aspectRatio": task.aspect_ratio,
        "steps": task.steps,
    }
