"""Replicate's format: the prediction object, signed by Standard Webhooks. The dialect answers with the same object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from broker.clock import iso
from broker.i18n import Messages
from broker.notifications.formats.base import FormatContext
from broker.presenter import Moment, OneOf, ResponseModel
from storage.deliveries import Delivery
from storage.images import StoredImage
from storage.tasks import Task
from webhooks.events import Event
from webhooks.signatures.standard import StandardSignature

WEBHOOK_EVENTS: Final = ("start", "output", "logs", "completed")
DEFAULT_EVENTS: Final = ("output", "completed")
"""Replicate's own, for a webhook without a filter."""
UNKNOWN_VERSION: Final = "hidden"
"""What Replicate itself shows for its official models."""

_STATUSES: Final = {
    "pending": "starting",
    "processing": "processing",
    "completed": "succeeded",
    "failed": "failed",
    "canceled": "canceled",
}
_CODES: Final = {
    "safety_input": "E005",
    "safety_output": "E005",
    "provider_rate_limited": "E003",
    "provider_unavailable": "E004",
}
"""What clients of Replicate look for in the text of an error."""


@dataclass(frozen=True, kw_only=True)
class PredictionOrigin:
    """What is kept about the request of a prediction, in the origin of its tasks."""

    model: str
    """As the client named it, like `google/nano-banana`."""
    version: str = UNKNOWN_VERSION
    input: Mapping[str, Any]
    """Without the prompt, which the task has, and without image data."""
    images: int = 1
    """Number of tasks that belong to the prediction: all of a batch."""
    events: tuple[str, ...] = DEFAULT_EVENTS
    base_url: str = ""
    """Where the client reached the broker; webhooks link there while there is no public URL."""

    def to_column(self, *, has_webhook: bool) -> dict[str, Any]:
        """Return the origin of an order."""
        return {"dialect": "replicate", **vars(self)} | ({"webhook_format": "replicate"} if has_webhook else {})

    @classmethod
    def of_task(cls, task: Task) -> PredictionOrigin:
        """Return the origin of a task; a task of another dialect is a prediction of one image."""
        origin = task.origin
        if origin.get("dialect") != "replicate":
            return cls(model=f"google/{task.model}", input=_input_of(task))
        kept = {name: origin[name] for name in cls.__dataclass_fields__ if name in origin}
        return cls(**{**kept, "events": tuple(kept["events"])})


class PredictionUrls(ResponseModel):
    get: str
    cancel: str


class PredictionErrorDetail(ResponseModel):
    """The broker's own words for a failure."""

    code: str
    retryable: bool
    billed: Annotated[str, OneOf(("yes", "no", "unknown"))]


class ReplicatePrediction(ResponseModel):
    """The prediction object of Replicate, with `error_detail` of our own."""

    model_config = ConfigDict(alias_generator=None)

    id: str
    model: str
    version: str
    input: dict[str, Any]
    output: Annotated[str | list[str] | None, Field(description="URL or data URI; a list of several images")]
    logs: str
    error: str | None
    error_detail: PredictionErrorDetail | None
    status: Annotated[str, OneOf(("starting", "processing", "succeeded", "failed", "canceled"))]
    created_at: Moment
    started_at: Moment | None
    completed_at: Moment | None
    data_removed: bool
    metrics: dict[str, float]
    source: Literal["api"]
    urls: PredictionUrls


@dataclass(frozen=True, kw_only=True)
class PredictionPresenter:
    """Builds prediction objects."""

    messages: Messages

    def make_prediction(
        self, tasks: Sequence[Task], images: Sequence[StoredImage], base_url: str, *, is_new: bool = False
    ) -> ReplicatePrediction:
        """Return the prediction of one task, or of all tasks of a batch.

        images: of each completed task the first, in order. is_new: for the answer to its order, in which clients take
        every status but `starting` for an end.
        """
        first, origin = tasks[0], PredictionOrigin.of_task(tasks[0])
        status = _status_of(tasks)
        if is_new and status == "processing":
            status = "starting"
        urls = [f"{base_url}/uploads/images/{image.name}" for image in images]
        failed = next((task for task in tasks if task.status == "failed"), None)
        error, detail = self._error(failed) if failed and status == "failed" else (None, None)
        url = f"{base_url}/v1/predictions/{first.id}"
        ended_at = max(task.ended_at or 0.0 for task in tasks) if all(task.has_ended for task in tasks) else None
        return ReplicatePrediction(
            id=first.id,
            model=origin.model,
            version=origin.version,
            input={"prompt": first.prompt, **origin.input},
            output=(urls if origin.images > 1 else urls[0]) if urls else None,
            logs="",
            error=error,
            error_detail=detail,
            status=status,
            created_at=iso(first.created_at),
            started_at=iso(min((task.sent_at for task in tasks if task.sent_at is not None), default=None)),
            completed_at=iso(ended_at),
            data_removed=False,
            metrics={} if ended_at is None else _metrics(tasks, ended_at),
            source="api",
            urls=PredictionUrls(get=url, cancel=f"{url}/cancel"),
        )

    def _error(self, task: Task) -> tuple[str, PredictionErrorDetail]:
        code = task.error_code or "provider_error"
        parts = [self.messages.task_error(code, task.billed, "en")]
        parts += [f"({note})" for note in (task.error_detail, _CODES.get(code)) if note]
        detail = PredictionErrorDetail(code=code, retryable=task.error_retryable, billed=task.billed)
        return " ".join(parts), detail


class ReplicateFormat:
    """The prediction object, at the events that the client chose.

    Replicate sends `output` at most twice a second, so that of an image is the one of the end: with both events chosen
    there is one webhook, with the result.
    """

    def __init__(self, context: FormatContext) -> None:
        self._presenter = PredictionPresenter(messages=context.presenter.messages)
        self._signing_keys = context.signing_keys
        self._public_base = context.public_base

    def make_body(self, event: Event, at: float, task: Task, images: Sequence[StoredImage]) -> str | None:
        wanted = PredictionOrigin.of_task(task).events
        if "completed" not in wanted and not ("output" in wanted and event == Event.COMPLETED):
            return None
        return self._write_body(task, images[:1])

    def make_start_body(self, at: float, task: Task) -> str | None:
        return self._write_body(task, ()) if "start" in PredictionOrigin.of_task(task).events else None

    def sign(self, delivery: Delivery, at: float, body: bytes) -> Mapping[str, str]:
        return StandardSignature(self._signing_keys.of_owner(delivery.caller)).sign(delivery.id, at, body)

    def _write_body(self, task: Task, images: Sequence[StoredImage]) -> str:
        base_url = self._public_base() or PredictionOrigin.of_task(task).base_url
        document = self._presenter.make_prediction([task], images, base_url).to_document()
        return json.dumps(document, allow_nan=False, separators=(",", ":"))


def _status_of(tasks: Sequence[Task]) -> str:
    """Return the status of all tasks together: unfinished while one is, then the best end."""
    found = {task.status for task in tasks}
    if found & {"pending", "processing"}:
        return "starting" if found == {"pending"} else "processing"
    return next(_STATUSES[status] for status in ("completed", "failed", "canceled") if status in found)


def _metrics(tasks: Sequence[Task], ended_at: float) -> dict[str, float]:
    """Return the seconds that the provider took, where they are known, and those from the order to the end."""
    times = [task.finished_at - task.sent_at for task in tasks if task.finished_at and task.sent_at]
    return {
        **({"predict_time": max(times)} if times else {}),
        "total_time": ended_at - min(task.created_at for task in tasks),
    }


def _input_of(task: Task) -> dict[str, Any]:
    """Return the parameters of a task of another dialect, spelled as Replicate's models have them."""
    params = {"aspect_ratio": task.aspect_ratio, "resolution": task.resolution, **task.params}
    return {name: value for name, value in params.items() if isinstance(value, str | int | float)}
