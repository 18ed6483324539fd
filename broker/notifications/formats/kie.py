"""kie.ai's record of a job, as its status route and its callbacks have it, and the signature of its callbacks.

Shapes and codes are those of docs.kie.ai, pages Get Task Detail and Webhook Verification.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from broker.i18n import Messages
from broker.notifications.formats.base import FormatContext
from broker.presenter import ResponseModel
from storage.deliveries import Delivery
from storage.images import StoredImage
from storage.states import TaskState
from storage.tasks import Task
from webhooks.events import Event
from webhooks.signatures.job_id_hmac import JobIdHmac

CREDIT_USD: Final = 0.005
"""Price of a credit at kie.ai; costs at other providers are converted."""
SUCCESS_CODE: Final = 200
FAILURE_CODE: Final = 501
SUCCESS_MESSAGE: Final = "Playground task completed successfully."
FAILURE_MESSAGE: Final = "Playground task failed."

FAIL_CODES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("safety_input", "safety_output", "provider_rejected", "canceled"), "400"),
    "provider_credits": "402",
    "provider_rate_limited": "429",
    **dict.fromkeys(("provider_auth", "provider_unavailable"), "455"),
    "deadline_exceeded": "501",
}
"""`failCode` of the broker's codes; "500" for the others."""

State = Literal["waiting", "queuing", "generating", "success", "fail"]


class KieRecord(ResponseModel):
    """A job, as the status route and the callbacks of kie.ai show it. Moments are milliseconds since the epoch."""

    task_id: str
    model: Annotated[str, Field(description="as the order spelled it")]
    state: State
    param: Annotated[str, Field(description="JSON: the order")]
    result_json: Annotated[str | None, Field(description='JSON: {"resultUrls": […]}')]
    fail_code: str | None
    fail_msg: str | None
    cost_time: Annotated[int | None, Field(description="milliseconds; in callbacks seconds")]
    complete_time: int | None
    create_time: int
    update_time: int
    credits_consumed: Annotated[float | None, Field(description="null: not known")]


def build_record(task: Task, images: Sequence[StoredImage], base_url: str, messages: Messages) -> KieRecord:
    """Return the record of a task. base_url: where the receiver reaches the broker."""
    state = _state_of(task)
    urls = [f"{base_url}/uploads/images/{image.name}" for image in images]
    ended_at = task.ended_at
    return KieRecord(
        task_id=task.id,
        model=str(task.origin.get("model", task.model)),
        state=state,
        param=json.dumps({"model": task.origin.get("model", task.model), "input": _input_of(task)}),
        result_json=json.dumps({"resultUrls": urls}) if state == "success" else None,
        fail_code=FAIL_CODES.get(task.error_code or "canceled", "500") if state == "fail" else "",
        fail_msg=_reason_of(task, messages) if state == "fail" else "",
        cost_time=None if ended_at is None else _milliseconds(max(0.0, ended_at - task.created_at)),
        complete_time=None if ended_at is None else _milliseconds(ended_at),
        create_time=_milliseconds(task.created_at),
        update_time=_milliseconds(task.updated_at),
        credits_consumed=_credits_of(task, state),
    )


class KieFormat:
    """`{"code", "msg", "data"}` with the record; the signature covers the job's id and the time, not the body."""

    def __init__(self, context: FormatContext) -> None:
        self._messages = context.presenter.messages
        self._signing_keys = context.signing_keys

    def make_body(self, event: Event, at: float, task: Task, images: Sequence[StoredImage]) -> str | None:
        record = build_record(task, images, str(task.origin.get("base_url", "")), self._messages).to_document()
        data = {
            **record,
            "param": json.dumps({**json.loads(record["param"]), "input": json.dumps(_input_of(task))}),
            "failCode": record["failCode"] or None,
            "failMsg": record["failMsg"] or None,
            "costTime": (record["costTime"] or 0) // 1000,
        }
        is_success = record["state"] == "success"
        return json.dumps(
            {
                "code": SUCCESS_CODE if is_success else FAILURE_CODE,
                "msg": SUCCESS_MESSAGE if is_success else FAILURE_MESSAGE,
                "data": data,
            }
        )

    def sign(self, delivery: Delivery, at: float, body: bytes) -> Mapping[str, str]:
        signature = JobIdHmac(
            key=self._signing_keys.secret_of(delivery.caller).encode(),
            signature_header="x-webhook-signature",
            timestamp_header="x-webhook-timestamp",
        )
        return signature.sign(delivery.task_id, at)


def _state_of(task: Task) -> State:
    match task.status:
        case "completed":
            return "success"
        case "failed" | "canceled":
            return "fail"
        case "pending":
            return "waiting"
    return "queuing" if task.state in {TaskState.QUEUED, TaskState.SUBMITTING} else "generating"


def _input_of(task: Task) -> dict[str, Any]:
    return {"prompt": task.prompt, **task.origin.get("input", {})}


def _reason_of(task: Task, messages: Messages) -> str:
    """Return why a task failed, without the cure, whose words would hide the reason from clients that search them."""
    reason = messages.get(task.error_code or "canceled", "en").partition(". ")[0].removesuffix(".")
    return f"{reason} ({task.error_detail})." if task.error_detail else f"{reason}."


def _credits_of(task: Task, state: State) -> float | None:
    if state == "success":
        return None if task.cost_usd is None else round(task.cost_usd / CREDIT_USD, 3)
    return 0.0 if state != "fail" or task.billed == "no" else None


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
