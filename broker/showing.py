"""A task as callers see it: the one shape that a poll, a stream, a list and a webhook tell it in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.clock import iso
from broker.sentences import Language, Sentences
from storage.images import StoredImage
from storage.tasks import State, Task

_STAGES: Final = {
    State.QUEUED: "queued",
    State.SUBMITTING: "submitting",
    State.WAITING: "waiting",
    State.FETCHING: "downloading",
}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What can be told of a task beyond its row.

    position: its place in the queue, from 1. eta: seconds until it is done, rounded. fresh_for: how many seconds this
    stands if the row does not change.
    """

    position: int | None = None
    eta: int | None = None
    fresh_for: float = math.inf


UNKNOWN: Final = Progress()


@dataclass(frozen=True, kw_only=True)
class Showing:
    """retention: seconds that an end is kept, for `expiresAt`."""

    sentences: Sentences
    retention: float

    def document(
        self, task: Task, images: Sequence[StoredImage], language: Language, progress: Progress = UNKNOWN
    ) -> dict[str, Any]:
        """The keys of the contract, no more and no fewer. images: the results of a completed task, in order."""
        results = [_result(image) for image in images]
        error = _error(task)
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
            "error": self.sentences.end(error, task.billed, language) if error else None,
            "errorDetail": _error_detail(task, error) if error else None,
            "progress": _progress(task, progress),
            "provider": task.provider,
            "attempts": task.attempt,
            "cost": None if task.cost is None else {"amount": task.cost, "unit": "credits"},
            "createdAt": iso(task.created_at),
            "updatedAt": iso(task.updated_at),
            "expiresAt": iso(task.ended_at + self.retention) if task.ended_at is not None else None,
            "generation": _generation(task, results),
        }


def _progress(task: Task, progress: Progress) -> dict[str, Any]:
    """null is what nobody knows, or what has no meaning at this stage."""
    asked = task.state == State.WAITING and not task.ended
    percent = task.provider_percent if asked else None
    return {
        "stage": "done" if task.ended else _STAGES[task.state],
        "position": progress.position,
        "providerState": task.provider_state if asked else None,
        "percent": None if percent is None else round(percent),
        "etaSeconds": progress.eta,
    }


def _error(task: Task) -> str | None:
    """The code of an end that was told; what a running task remembers of its last attempt is nobody's business."""
    if task.status not in {"failed", "canceled"}:
        return None
    return task.error_code or ("canceled" if task.state == State.CANCELED else "provider_error")


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
