"""Webhooks as fal sends them, and the outcome of a request in fal's terms, with which its dialect answers polls too.

`{"request_id", "gateway_request_id", "status": "OK" | "ERROR", "payload", "error"}`, signed with Ed25519 over four
lines (fal: Webhooks). The key is derived from our secret; its public half is at `/fal/.well-known/jwks.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field

from broker.notifications.formats.base import FormatContext
from broker.presenter import ResponseModel
from storage.deliveries import Delivery
from storage.images import StoredImage
from storage.states import TaskState
from storage.tasks import Task
from webhooks.events import Event
from webhooks.signatures.ed25519_lines import derived_key, sign

USER_ID: Final = "nano-banana-broker"
"""Second line of what is signed: fal has the id of an account there."""
BASE_KEY: Final = "base"
"""Key in the origin of an order: where its client reached us, for a broker without a public URL."""

_REFUSED_STATUS: Final = 422
_FREE_STATUS: Final = 500
"""fal charges nothing for a failure by its server."""
_PAID_STATUS: Final = 424
_TYPES: Final[Mapping[str, tuple[str, int | None]]] = {
    "safety_input": ("content_policy_violation", _REFUSED_STATUS),
    "safety_output": ("content_policy_violation", _REFUSED_STATUS),
    "no_image": ("no_media_generated", _REFUSED_STATUS),
    "provider_rejected": ("value_error", _REFUSED_STATUS),
    "deadline_exceeded": ("generation_timeout", None),
    "provider_auth": ("downstream_service_unavailable", None),
    "provider_credits": ("downstream_service_unavailable", None),
    "provider_rate_limited": ("downstream_service_unavailable", None),
    "provider_unavailable": ("downstream_service_unavailable", None),
    "provider_error": ("downstream_service_error", None),
    "unknown_outcome": ("downstream_service_error", None),
    "canceled": ("client_cancelled", 499),
}
"""Code of a task → fal's type of the error, and its status where that does not depend on the cost."""
_OTHER_TYPE: Final = ("internal_server_error", None)


class FalFile(ResponseModel):
    """An image."""

    model_config = ConfigDict(alias_generator=None)

    url: Annotated[str, Field(description="absolute, or a data URI with sync_mode")]
    content_type: str
    file_name: str
    file_size: Annotated[int, Field(description="bytes")]
    width: int
    height: int


class FalOutput(ResponseModel):
    """The output of a request."""

    model_config = ConfigDict(alias_generator=None)

    images: list[FalFile]
    description: Annotated[str, Field(description="what the model wrote beside the images")]


class FalDetail(ResponseModel):
    """One error of a request."""

    model_config = ConfigDict(alias_generator=None)

    loc: list[str]
    msg: str
    type: str
    ctx: Annotated[dict[str, Any], Field(description="the broker's own code, and if the failure cost anything")]


def failure_type(code: str) -> str:
    """Return fal's type of the failure of a task."""
    return _TYPES.get(code, _OTHER_TYPE)[0]


def failure_status(code: str, billed: str) -> int:
    """Return the status of the result of a failed request. No client repeats a request after one of them."""
    fixed = _TYPES.get(code, _OTHER_TYPE)[1]
    return fixed or (_FREE_STATUS if billed == "no" else _PAID_STATUS)


def failure_detail(code: str, message: str, *, billed: str, retryable: bool) -> FalDetail:
    """Return what is told about the failure of a task."""
    context = {"code": code, "billed": billed, "retryable": retryable}
    return FalDetail(loc=["body", "prompt"], msg=message, type=failure_type(code), ctx=context)


def build_output(tasks: Sequence[Task], images: Sequence[StoredImage], base: str) -> FalOutput:
    """Return the output of a request. images: of all its tasks, in order. base: where a client reaches us."""
    files = [
        FalFile(
            url=f"{base}/uploads/images/{image.name}",
            content_type=image.media_type,
            file_name=image.name,
            file_size=image.size,
            width=image.width,
            height=image.height,
        )
        for image in images
    ]
    return FalOutput(images=files, description="\n".join(text for task in tasks for text in task.texts))


class FalFormat:
    """One webhook at the end of a request, whose id is that of its first task."""

    def __init__(self, context: FormatContext) -> None:
        self._presenter = context.presenter
        self._secret = context.secret
        self._public_base = context.public_base

    def make_body(self, event: Event, at: float, task: Task, images: Sequence[StoredImage]) -> str | None:
        return self.make_request_body(at, [task], images)

    def make_request_body(self, at: float, tasks: Sequence[Task], images: Sequence[StoredImage]) -> str:
        request_id, kept = tasks[0].id, [task for task in tasks if task.state != TaskState.EXPIRED]
        completed = [task for task in kept if task.status == "completed"]
        body: dict[str, Any] = {"request_id": request_id, "gateway_request_id": request_id}
        if completed:
            base = self._public_base() or str(completed[0].origin.get(BASE_KEY, ""))
            body |= {"status": "OK", "error": None, "payload": build_output(completed, images, base).to_document()}
        else:
            body |= {"status": "ERROR", **self._failure(kept[0])}
        return json.dumps(body, allow_nan=False, separators=(",", ":"))

    def _failure(self, task: Task) -> dict[str, Any]:
        shown = self._presenter.task(task, (), "en")
        code = shown.error_detail.code if shown.error_detail else "provider_error"
        words = f" ({task.error_detail})" if task.error_detail else ""
        detail = failure_detail(
            code, f"{shown.error}{words}", billed=task.billed, retryable=task.error_retryable
        ).to_document()
        return {
            "error": f"Invalid status code: {failure_status(code, task.billed)}",
            "payload": {"detail": [detail]},
        }

    def sign(self, delivery: Delivery, at: float, body: bytes) -> Mapping[str, str]:
        return sign(derived_key(self._secret), json.loads(body)["request_id"], USER_ID, at, body)
