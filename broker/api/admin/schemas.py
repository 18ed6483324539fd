"""Response models of the callback inbox and the delivery log."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from broker.api.http.pagination import PageQuery, cursor_text
from broker.api.http.query import FLAG_TEXT, NAME_TEXT, QueryModel, one_of_text
from broker.presenter import Absent, Moment, OneOf, ResponseModel, TaskData, TaskId
from storage import ids
from storage.deliveries import DeliveryStatus

CALLBACK_ID: Final = f"^{ids.CALLBACK_ID.pattern}$"
DELIVERY_ID: Final = f"^{ids.EVENT_ID.pattern}$"
VERIFICATIONS: Final = ("accept", "recheck", "reject", "unknown", "malformed")
"""accept: the body is taken as the provider's word. recheck: check with the provider. The others change nothing."""
DELIVERY_STATUSES: Final = tuple(status.value for status in DeliveryStatus)

CallbackId = Annotated[str, Field(pattern=CALLBACK_ID, examples=[f"hook_{'0' * 24}"])]
DeliveryId = Annotated[str, Field(pattern=DELIVERY_ID, examples=[f"evt_{'0' * 32}"])]
VerificationName = Annotated[str, OneOf(VERIFICATIONS)]
EventType = Annotated[str, OneOf(("task.completed", "task.failed", "task.canceled"))]


# -- queries


class CallbackListQuery(PageQuery):
    task: Annotated[str | None, NAME_TEXT, Field(description="only about this task")] = None
    verification: Annotated[str | None, one_of_text(VERIFICATIONS), Field(description="only with this result")] = None
    provider: Annotated[str | None, NAME_TEXT, Field(description="only from this provider")] = None
    cursor: Annotated[tuple[float, str] | None, cursor_text("hook")] = None


class ReplayQuery(QueryModel):
    dry_run: Annotated[bool, FLAG_TEXT, Field(description="change nothing")] = False


class DeliveryListQuery(PageQuery):
    task: Annotated[str | None, NAME_TEXT, Field(description="only of this task")] = None
    outcome: Annotated[str | None, one_of_text(DELIVERY_STATUSES), Field(description="only with this outcome")] = None
    cursor: Annotated[tuple[float, str] | None, cursor_text("evt")] = None


# -- callbacks


class CallbackSummary(ResponseModel):
    id: CallbackId
    provider: str
    task_id: TaskId | None
    attempt: int | None
    verification: VerificationName
    status: Annotated[int, Field(description="of our response")]
    reason: str
    received_at: Moment
    lag_seconds: Annotated[float | None, Field(description="from the end of the job, where the body has it")]
    processed_at: Annotated[Moment | None, Field(description="null for callbacks that change nothing")]
    replay_of: CallbackId | Absent = None


class CallbackData(CallbackSummary):
    headers: dict[str, str]
    query: dict[str, str]
    evidence: dict[str, Any]
    body: str


class MissingSummary(ResponseModel):
    """Callbacks that were expected and did not arrive."""

    count: int
    hours: float
    providers: dict[str, int]


class CallbackPage(ResponseModel):
    success: Literal[True]
    data: list[CallbackSummary]
    next_cursor: str | None
    missing: Annotated[MissingSummary | Absent, Field(description="with the first page")] = None


class CallbackResponse(ResponseModel):
    success: Literal[True]
    data: CallbackData


class VerificationRecord(ResponseModel):
    """The result of the verification when the callback was received."""

    verification: VerificationName
    status: int
    reason: str


class ReplayData(ResponseModel):
    """A callback as the current code reads and verifies it."""

    id: CallbackId
    was: VerificationRecord
    names: Annotated[list[str], Field(description="ids in its body")]
    task_id: TaskId | None
    attempt: int | None
    verification: VerificationName
    status: int
    reason: str
    replayed_as: Annotated[VerificationName | None, Field(description="null: a replay changes nothing")]
    report: Annotated[str, Field(description="what the body reports, in words")]
    report_data: Annotated[dict[str, Any] | None, Field(description="the same for programs; null: not readable")]
    effect: Annotated[str, Field(description="on the task as it is now")]
    dry_run: bool
    replayed: bool
    replay_id: CallbackId | None


class ReplayResponse(ResponseModel):
    success: Literal[True]
    data: ReplayData


class ExpectedResult(ResponseModel):
    names: list[str]
    report: dict[str, Any] | None
    verification: VerificationName
    status: int


class CallbackFixture(ResponseModel):
    """A file for `tests/fixtures/callbacks`: `body` and `evidence` must lead to `expected`."""

    provider: str
    received_at: Moment
    headers: dict[str, str]
    query: dict[str, str]
    body: str
    evidence: dict[str, Any]
    was: VerificationRecord
    expected: ExpectedResult


# -- deliveries


class DeliverySummary(ResponseModel):
    id: Annotated[DeliveryId, Field(description="also the webhook-id")]
    task_id: TaskId
    type: EventType
    url: Annotated[str, Field(description="without its query, which may be a secret")]
    outcome: Annotated[str, OneOf(DELIVERY_STATUSES)]
    attempts: int
    last_status: int | None
    reason: str | None
    created_at: Moment
    next_at: Moment | None
    delivered_at: Moment | None


class DeliveryAttemptData(ResponseModel):
    number: int
    at: Moment
    status: int | None
    error: str | None
    milliseconds: int


class WebhookBody(ResponseModel):
    type: EventType
    timestamp: Moment
    data: TaskData


class DeliveryData(DeliverySummary):
    attempt_log: list[DeliveryAttemptData]
    body: WebhookBody


class DeliveryPage(ResponseModel):
    success: Literal[True]
    data: list[DeliverySummary]
    next_cursor: str | None


class DeliverySummaryResponse(ResponseModel):
    success: Literal[True]
    data: DeliverySummary


class DeliveryResponse(ResponseModel):
    success: Literal[True]
    data: DeliveryData
