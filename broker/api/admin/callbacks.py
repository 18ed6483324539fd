"""The callback inbox over HTTP, for operators: list, show, replay, export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, assert_never

from starlette.requests import Request
from starlette.responses import Response

from broker.api.admin.schemas import (
    CALLBACK_ID,
    CallbackData,
    CallbackFixture,
    CallbackListQuery,
    CallbackPage,
    CallbackResponse,
    CallbackSummary,
    ExpectedResult,
    MissingSummary,
    ReplayData,
    ReplayQuery,
    ReplayResponse,
    VerificationRecord,
)
from broker.api.http.endpoint import Endpoint, Parameter, json_success
from broker.api.http.pagination import make_cursor, split_page
from broker.api.http.responses import json_response
from broker.callbacks.inbox import CallbackInbox, Explanation
from broker.clock import iso
from broker.reports import Failed, Finished, Pending, Report
from storage.callbacks import CallbackRecord, Callbacks, StoredCallback


@dataclass(frozen=True, kw_only=True)
class CallbackInboxRoutes:
    inbox: CallbackInbox
    callbacks: Callbacks

    async def list_callbacks(self, request: Request) -> Response:
        """Return a page of callbacks, newest first; with the first page the number of missing ones."""
        query = CallbackListQuery.read(request)
        found = await self.callbacks.list_newest(
            limit=query.limit + 1,
            before=query.cursor,
            task_id=query.task,
            verification=query.verification,
            provider=query.provider,
        )
        page, has_more = split_page(found, query.limit)
        document = CallbackPage(
            success=True,
            data=[CallbackSummary(**_summary_fields(entry)) for entry in page],
            next_cursor=make_cursor(page[-1].received_at, page[-1].id) if has_more else None,
            missing=await self._missing() if query.cursor is None else None,
        )
        return json_response(document.to_document())

    async def _missing(self) -> MissingSummary:
        missing, window_seconds = await self.inbox.count_missing()
        return MissingSummary(count=sum(missing.values()), hours=window_seconds / 3600, providers=missing)

    async def get_callback(self, request: Request) -> Response:
        callback = await self.inbox.get(request.path_params["id"])
        return json_response(CallbackResponse(success=True, data=present_callback(callback)).to_document())

    async def replay_callback(self, request: Request) -> Response:
        """Read and verify a callback with the current code; without `dryRun` also process it again."""
        callback_id, dry_run = request.path_params["id"], ReplayQuery.read(request).dry_run
        if dry_run:
            explanation, replay_id = await self.inbox.explain(callback_id), None
        else:
            explanation, replay_id = await self.inbox.replay(callback_id)
        data = present_replay(explanation, dry_run=dry_run, replay_id=replay_id)
        return json_response(ReplayResponse(success=True, data=data).to_document())

    async def export_callback(self, request: Request) -> Response:
        return json_response(present_fixture(await self.inbox.explain(request.path_params["id"])).to_document())


# -- presentation


def _summary_fields(entry: CallbackRecord) -> dict[str, Any]:
    return {
        "id": entry.id,
        "provider": entry.provider,
        "task_id": entry.task_id,
        "attempt": entry.attempt,
        "verification": entry.verification,
        "status": entry.status,
        "reason": entry.reason,
        "received_at": iso(entry.received_at),
        "lag_seconds": _lag_seconds(entry),
        "processed_at": iso(entry.processed_at) if entry.is_relevant else None,
        "replay_of": entry.replay_of,
    }


def _lag_seconds(entry: CallbackRecord) -> float | None:
    """Return the time from the end of the job to the callback; 0 if the provider's clock is ahead of ours."""
    return None if entry.job_ended_at is None else round(max(0.0, entry.received_at - entry.job_ended_at), 3)


def present_callback(callback: StoredCallback) -> CallbackData:
    return CallbackData(
        **_summary_fields(callback),
        headers=json.loads(callback.headers),
        query=json.loads(callback.query),
        evidence=json.loads(callback.evidence),
        body=callback.body,
    )


def present_replay(explanation: Explanation, *, dry_run: bool, replay_id: str | None) -> ReplayData:
    callback, decision, report = explanation.callback, explanation.verified.decision, explanation.report
    return ReplayData(
        id=callback.id,
        was=_record(callback),
        names=list(explanation.verified.job_ids),
        task_id=explanation.verified.task.id if explanation.verified.task else None,
        attempt=callback.attempt,
        verification=decision.verification.value,
        status=decision.status,
        reason=decision.reason,
        replayed_as=explanation.replayed_as.value if explanation.replayed_as else None,
        report=describe_report(report) if report else "the body cannot be read",
        report_data=report_document(report) if report else None,
        effect=explanation.effect,
        dry_run=dry_run,
        replayed=replay_id is not None,
        replay_id=replay_id,
    )


def present_fixture(explanation: Explanation) -> CallbackFixture:
    callback = explanation.callback
    return CallbackFixture(
        provider=callback.provider,
        received_at=iso(callback.received_at),
        headers=json.loads(callback.headers),
        query=json.loads(callback.query),
        body=callback.body,
        evidence=vars(explanation.verified.evidence),
        was=_record(callback),
        expected=ExpectedResult(
            names=list(explanation.verified.job_ids),
            report=report_document(explanation.report) if explanation.report else None,
            verification=explanation.verified.decision.verification.value,
            status=explanation.verified.decision.status,
        ),
    )


def _record(callback: StoredCallback) -> VerificationRecord:
    return VerificationRecord(verification=callback.verification, status=callback.status, reason=callback.reason)


def report_document(report: Report) -> dict[str, Any]:
    """Return a report as JSON."""
    match report:
        case Pending():
            return {"kind": "pending", "jobId": report.job_id, "checkIn": report.check_in}
        case Finished():
            kept = {"outputs": list(report.outputs), "cost": report.cost, "endedAt": iso(report.ended_at)}
            return {"kind": "finished", "jobId": report.job_id, **kept}
        case Failed():
            return {
                "kind": "failed",
                "jobId": report.job_id,
                "code": report.code,
                "message": report.message,
                "retryable": report.retryable,
                "billed": report.billed,
                "providerCode": report.provider_code,
                "endedAt": iso(report.ended_at),
            }
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
            billed = {"yes": "billed", "no": "not billed", "unknown": "perhaps billed"}[report.billed]
            return f"the job failed: {report.code}, {billed}: {report.message}"
        case _:
            assert_never(report)


# -- endpoints

_CALLBACK: Final = Parameter(
    name="id", where="path", text="the callback's id", schema={"type": "string", "pattern": CALLBACK_ID}
)


def callback_inbox_endpoints(callbacks: CallbackInboxRoutes) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/api/callbacks",
            handler=callbacks.list_callbacks,
            access="admin",
            operation_id="listCallbacks",
            summary="List received callbacks, newest first",
            tag="operators",
            description="The first page also counts the callbacks that were expected and did not arrive.",
            query=CallbackListQuery,
            responses={200: json_success("a page", CallbackPage)},
            errors=("invalid_request",),
        ),
        Endpoint(
            method="GET",
            path="/api/callbacks/{id}",
            handler=callbacks.get_callback,
            access="admin",
            operation_id="getCallback",
            summary="Get a callback with its body and evidence",
            tag="operators",
            parameters=(_CALLBACK,),
            responses={200: json_success("the callback", CallbackResponse)},
            errors=("not_found",),
        ),
        Endpoint(
            method="POST",
            path="/api/callbacks/{id}/replay",
            handler=callbacks.replay_callback,
            access="admin",
            operation_id="replayCallback",
            summary="Process a callback again with the current code",
            tag="operators",
            description="It never gets more trust than when it was received. With `dryRun` it is only explained.",
            parameters=(_CALLBACK,),
            query=ReplayQuery,
            responses={200: json_success("the report and its effect", ReplayResponse)},
            errors=("invalid_request", "not_found"),
        ),
        Endpoint(
            method="GET",
            path="/api/callbacks/{id}/fixture",
            handler=callbacks.export_callback,
            access="admin",
            operation_id="exportCallback",
            summary="Export a callback as a test fixture",
            tag="operators",
            parameters=(_CALLBACK,),
            responses={200: json_success("the callback and what it must lead to", CallbackFixture)},
            errors=("not_found",),
        ),
    ]
