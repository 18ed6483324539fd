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
from uploads.thumbnails import has_thumbnail

_STAGES: Final = {
    State.QUEUED: "queued",
    State.SUBMITTING: "submitting",
    State.WAITING: "waiting",
    State.FETCHING: "downloading",
}

SHOWN_SIZE: Final = 512


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

    def sidecar(self, image: StoredImage, tasks: Sequence[Task]) -> dict[str, Any]:
        """What is known of one image beside its bytes. tasks: those it comes from, all of one request; at least one."""
        task, ends = tasks[0], [task.ended_at for task in tasks]
        return {
            "name": image.name,
            **_result(image),
            "kind": image.kind,
            "task": task.id,
            "tasks": [task.id for task in tasks],
            "prompt": task.prompt,
            "model": task.model,
            "mode": task.mode,
            "aspectRatio": task.aspect_ratio,
            "resolution": task.resolution,
            "steps": task.steps,
            "seed": task.seed,
            "provider": task.provider,
            "createdAt": iso(image.created_at),
            "expiresAt": iso(max(end for end in ends if end) + self.retention) if all(ends) else None,
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
    url = f"/uploads/{'references' if image.kind == 'reference' else 'images'}/{image.name}"
    return {
        "url": url,
        "width": image.width,
        "height": image.height,
        "bytes": image.size,
        "mediaType": image.media_type,
        "sha256": image.sha256,
        "thumbnail": f"{url}?size={SHOWN_SIZE}" if has_thumbnail(image) else None,
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
