"""The callback inbox over HTTP, for operators: list, show, replay, export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, Self, assert_never

from pydantic import Field
from pydantic.alias_generators import to_camel
from starlette.requests import Request
from starlette.responses import Response

from broker.api.admin.visibility import (
    WITHHELD,
    IsWithheld,
    OwnerName,
    ShownTaskId,
    Visibility,
    VisibilityReader,
    content_withheld,
)
from broker.api.http.endpoint import Endpoint, Parameter, json_success, principal_of
from broker.api.http.pagination import PageQuery, PageResponse, cursor_text, split_page
from broker.api.http.query import FLAG_TEXT, NAME_TEXT, QueryModel, one_of_text
from broker.api.http.responses import DataResponse, data_response, json_response
from broker.callbacks.inbox import CallbackInbox, Explanation
from broker.clock import iso
from broker.presenter import Absent, Moment, OneOf, ResponseModel
from broker.reports import Failed, Finished, Pending, Report
from storage import ids
from storage.callbacks import CallbackRecord, Callbacks, StoredCallback
from webhooks.verification import Verification

CALLBACK_ID: Final = f"^{ids.CALLBACK_ID.pattern}$"
VERIFICATIONS: Final = tuple(verification.value for verification in Verification)

CallbackId = Annotated[str, Field(pattern=CALLBACK_ID, examples=[f"callback_{'0' * 24}"])]
VerificationName = Annotated[str, OneOf(VERIFICATIONS)]


# -- models


class CallbackListQuery(PageQuery):
    task: Annotated[str | None, NAME_TEXT, Field(description="only about this task")] = None
    verification: Annotated[str | None, one_of_text(VERIFICATIONS), Field(description="only with this result")] = None
    provider: Annotated[str | None, NAME_TEXT, Field(description="only from this provider")] = None
    cursor: Annotated[tuple[float, str] | None, cursor_text("callback")] = None


class ReplayQuery(QueryModel):
    dry_run: Annotated[bool, FLAG_TEXT, Field(description="change nothing")] = False


class CallbackSummary(ResponseModel):
    id: CallbackId
    provider: str
    task_id: ShownTaskId | None
    owner: OwnerName
    withheld: IsWithheld
    attempt: int | None
    verification: VerificationName
    status: Annotated[int, Field(description="of the broker's response")]
    reason: str
    received_at: Moment
    lag_seconds: Annotated[float | None, Field(description="from the end of the job, where the body has it")]
    processed_at: Annotated[Moment | None, Field(description="null for callbacks that change nothing")]
    replay_of: CallbackId | Absent = None

    @classmethod
    def from_callback(cls, callback: CallbackRecord, visibility: Visibility, **more: Any) -> Self:
        owner = visibility.owner_of(callback.task_id)
        lag_seconds = None
        if callback.job_ended_at is not None:  # the provider's clock may be ahead of ours
            lag_seconds = round(max(0.0, callback.received_at - callback.job_ended_at), 3)
        processed_at = callback.processed_at if callback.is_relevant else None
        return cls.from_object(
            callback,
            task_id=None if callback.task_id is None else visibility.task_id(callback.task_id, owner),
            owner=visibility.owner_name(owner),
            withheld=visibility.is_withheld(owner),
            lag_seconds=lag_seconds,
            processed_at=processed_at,
            **more,
        )


class CallbackData(CallbackSummary):
    headers: Annotated[dict[str, str] | None, Field(description="null if withheld, like query and body")]
    query: dict[str, str] | None
    evidence: dict[str, Any]
    body: str | None
    body_truncated: Annotated[bool, Field(description="only the beginning of the body is stored")]


class MissingSummary(ResponseModel):
    """Callbacks that were expected and did not arrive."""

    count: int
    hours: float
    providers: dict[str, int]


class CallbackPage(PageResponse[CallbackSummary]):
    missing: Annotated[MissingSummary | Absent, Field(description="with the first page")] = None


class VerificationRecord(ResponseModel):
    """The result of the verification when the callback was received."""

    verification: VerificationName
    status: int
    reason: str


class ReplayData(ResponseModel):
    """A callback as the current code reads and verifies it."""

    id: CallbackId
    was: VerificationRecord
    names: Annotated[list[str] | None, Field(description="ids in its body; null if withheld")]
    task_id: ShownTaskId | None
    owner: OwnerName
    withheld: IsWithheld
    attempt: int | None
    verification: VerificationName
    status: int
    reason: str
    replayed_as: Annotated[VerificationName | None, Field(description="null: a replay changes nothing")]
    report: Annotated[str, Field(description="what the body reports, in words")]
    report_data: Annotated[
        dict[str, Any] | None, Field(description="the same for programs; null: not readable, or withheld")
    ]
    effect: Annotated[str, Field(description="on the task as it is now")]
    dry_run: bool
    replayed: bool
    replay_id: CallbackId | None


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
    body_truncated: Annotated[bool, Field(description="only its beginning: nothing can be read in it")]
    evidence: dict[str, Any]
    was: VerificationRecord
    expected: ExpectedResult


# -- handlers


@dataclass(frozen=True, kw_only=True)
class CallbackInboxRoutes:
    inbox: CallbackInbox
    callbacks: Callbacks
    visibility: VisibilityReader

    def endpoints(self) -> list[Endpoint]:
        operator = partial(Endpoint, access="admin", tag="operators")
        single = partial(operator, parameters=(_CALLBACK,), errors=("not_found",))
        page = json_success("a page", CallbackPage)
        callback = json_success("the callback", DataResponse[CallbackData])
        replay = json_success("the report and its effect", DataResponse[ReplayData])
        fixture = json_success("the callback and what it must lead to", CallbackFixture)
        path = "/api/callbacks/{id}"
        return [
            operator("GET", "/api/callbacks", self.list_callbacks, query=CallbackListQuery, responses={200: page}),
            single("GET", path, self.get_callback, responses={200: callback}),
            single("POST", f"{path}/replay", self.replay_callback, query=ReplayQuery, responses={200: replay}),
            single(
                "GET",
                f"{path}/fixture",
                self.export_callback,
                responses={200: fixture},
                errors=("not_found", "forbidden"),
            ),
        ]

    async def list_callbacks(self, request: Request) -> Response:
        """List received callbacks, newest first.

        The first page also counts the callbacks that were expected and did not arrive.
        """
        query = CallbackListQuery.read(request)
        found = await self.callbacks.list_newest(
            limit=query.limit + 1,
            before=query.cursor,
            task_id=query.task,
            verification=query.verification,
            provider=query.provider,
        )
        page, next_cursor = split_page(found, query.limit, lambda callback: (callback.received_at, callback.id))
        visibility = await self.visibility.of_tasks(principal_of(request), (callback.task_id for callback in page))
        data = [CallbackSummary.from_callback(callback, visibility) for callback in page]
        summary = None
        if query.cursor is None:
            missing, window_seconds = await self.inbox.count_missing()
            summary = MissingSummary(count=sum(missing.values()), hours=window_seconds / 3600, providers=missing)
        document = CallbackPage(success=True, data=data, next_cursor=next_cursor, missing=summary)
        return json_response(document.to_document())

    async def get_callback(self, request: Request) -> Response:
        """Get a callback with its body and evidence."""
        callback = await self.inbox.get(request.path_params["id"])
        visibility = await self.visibility.of_tasks(principal_of(request), [callback.task_id])
        content: dict[str, Any] = {**_parsed_columns(callback), "body": callback.body}
        if visibility.is_withheld(visibility.owner_of(callback.task_id)):
            content = dict.fromkeys(content)
        evidence = json.loads(callback.evidence)
        return data_response(CallbackData.from_callback(callback, visibility, evidence=evidence, **content))

    async def replay_callback(self, request: Request) -> Response:
        """Process a callback again with the current code.

        It never gets more trust than when it was received. With `dryRun` it is only explained.
        """
        callback_id, dry_run = request.path_params["id"], ReplayQuery.read(request).dry_run
        if dry_run:
            explanation, replay_id = await self.inbox.explain(callback_id), None
        else:
            explanation, replay_id = await self.inbox.replay(callback_id)
        visibility, owner = await self._find_owner(request, explanation)
        return data_response(_replay_data(explanation, owner, visibility, is_dry_run=dry_run, replay_id=replay_id))

    async def export_callback(self, request: Request) -> Response:
        """Export a callback as a test fixture."""
        explanation = await self.inbox.explain(request.path_params["id"])
        visibility, owner = await self._find_owner(request, explanation)
        if visibility.is_withheld(owner):
            raise content_withheld()
        callback, verified, report = explanation.callback, explanation.verified, explanation.report
        fixture = CallbackFixture.from_object(
            callback,
            **_parsed_columns(callback),
            evidence=verified.evidence._asdict(),
            was=VerificationRecord.from_object(callback),
            expected=ExpectedResult.from_object(
                verified.decision, names=verified.job_ids, report=report_document(report) if report else None
            ),
        )
        return json_response(fixture.to_document())

    async def _find_owner(self, request: Request, explanation: Explanation) -> tuple[Visibility, str | None]:
        """Return the owner of the task that a callback concerned on arrival, or of the one that it names now.

        If these are two, the one whose content is withheld.
        """
        task = explanation.verified.task
        task_ids = [task_id for task_id in (explanation.callback.task_id, task.id if task else None) if task_id]
        visibility = await self.visibility.of_tasks(principal_of(request), task_ids or [None])
        owners = [visibility.owner_of(task_id) for task_id in task_ids]
        return visibility, next(
            (owner for owner in owners if visibility.is_withheld(owner)), owners[0] if owners else None
        )


_CALLBACK: Final = Parameter("id", "path", "the callback's id", {"type": "string", "pattern": CALLBACK_ID})


# -- presentation


def _parsed_columns(callback: StoredCallback) -> dict[str, Any]:
    return {"headers": json.loads(callback.headers), "query": json.loads(callback.query)}


def _replay_data(
    explanation: Explanation, owner: str | None, visibility: Visibility, *, is_dry_run: bool, replay_id: str | None
) -> ReplayData:
    callback, verified, report = explanation.callback, explanation.verified, explanation.report
    is_withheld = visibility.is_withheld(owner)
    return ReplayData.from_object(
        verified.decision,
        id=callback.id,
        was=VerificationRecord.from_object(callback),
        names=None if is_withheld else list(verified.job_ids),
        task_id=visibility.task_id(verified.task.id, owner) if verified.task else None,
        owner=visibility.owner_name(owner),
        withheld=is_withheld,
        attempt=callback.attempt,
        replayed_as=explanation.replayed_as,
        report=_describe_withheld(report) if is_withheld else _describe_read(report, callback),
        report_data=report_document(report) if report and not is_withheld else None,
        effect=explanation.effect,
        dry_run=is_dry_run,
        replayed=replay_id is not None,
        replay_id=replay_id,
    )


_BILLED: Final = {"yes": "billed", "no": "not billed", "unknown": "perhaps billed"}


def _describe_withheld(report: Report | None) -> str:
    """Return a report without what the provider says."""
    match report:
        case None:
            return WITHHELD
        case Failed():
            return f"the job failed: {report.code}, {_BILLED[report.billed]}"
        case _:
            return describe_report(report)


def _describe_read(report: Report | None, callback: StoredCallback) -> str:
    if report is not None:
        return describe_report(report)
    return "only the beginning of the body is stored" if callback.body_truncated else "the body cannot be read"


def report_document(report: Report) -> dict[str, Any]:
    """Return a report as JSON."""
    match report:
        case Pending():
            return {"kind": "pending", "jobId": report.job_id, "checkIn": report.check_in}
        case Finished():
            kept = {"outputs": list(report.outputs), "cost": report.cost, "endedAt": iso(report.ended_at)}
            return {"kind": "finished", "jobId": report.job_id, **kept}
        case Failed():
            names = ("code", "message", "retryable", "billed", "provider_code")
            kept = {to_camel(name): getattr(report, name) for name in names}
            return {"kind": "failed", "jobId": report.job_id, **kept, "endedAt": iso(report.ended_at)}
        case _:
            assert_never(report)


def describe_report(report: Report) -> str:
    """Return a report in words."""
    match report:
        case Pending(check_in=0):
            return "nothing certain: the broker checks with the provider"
        case Pending():
            return "the job is not finished"
        case Finished():
            number = len(report.outputs)
            cost = "" if report.cost is None else f", {report.cost:g} credits"
            return f"the job succeeded: {number} {'result' if number == 1 else 'results'}{cost}"
        case Failed():
            return f"the job failed: {report.code}, {_BILLED[report.billed]}: {report.message}"
        case _:
            assert_never(report)
