"""The inbox of callbacks over HTTP: list, look, replay, export. For those who run the broker, and nobody else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, assert_never

from starlette.requests import Request
from starlette.responses import Response

from broker.api.access import Access
from broker.api.answers import answer
from broker.api.pages import cursor_after, cursor_of, limit_of, name_of, page_of
from broker.callbacks.inbox import CallbackInbox, Explanation
from broker.clock import iso
from broker.errors import Refusal
from broker.reports import Failed, Finished, Pending, Report
from storage.hooks import Entry, Hook
from webhooks.verification import Verification

_TRUTHS: Final = {"": False, "false": False, "0": False, "true": True, "1": True}

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class InboxDoor:
    inbox: CallbackInbox
    access: Access

    async def listing(self, request: Request) -> Response:
        """The newest callbacks, page by page; with the first page those that never came."""
        self.access.require(request)
        limit = limit_of(request.query_params.get("limit"))
        before = cursor_of(request.query_params.get("cursor"), "hook")
        found = await self.inbox.list_newest(
            limit=limit + 1,
            before=before,
            task_id=name_of(request, "task"),
            verdict=_verdict(request),
            provider=name_of(request, "provider"),
        )
        page, more = page_of(found, limit)
        document: Document = {
            "success": True,
            "data": [entry_document(entry) for entry in page],
            "nextCursor": cursor_after(page[-1].received_at, page[-1].id) if more else None,
        }
        if before is None:
            document["missing"] = await self._missing()
        return answer(document)

    async def _missing(self) -> Document:
        missing = await self.inbox.count_missing()
        return {
            "count": sum(missing.by_provider.values()),
            "hours": missing.hours,
            "providers": missing.by_provider,
        }

    async def show(self, request: Request) -> Response:
        """One callback whole: what it said, and what it proved."""
        self.access.require(request)
        hook = await self.inbox.get(request.path_params["id"])
        return answer({"success": True, "data": hook_document(hook)})

    async def replay(self, request: Request) -> Response:
        """What today's code says of it; without `dryRun` its news is taken in again."""
        self.access.require(request)
        hook_id, dry_run = request.path_params["id"], _truth(request, "dryRun")
        told, replay_id = (await self.inbox.explain(hook_id), None) if dry_run else await self.inbox.replay(hook_id)
        document = {**explained(told), "dryRun": dry_run, "replayed": replay_id is not None, "replayId": replay_id}
        return answer({"success": True, "data": document})

    async def fixture(self, request: Request) -> Response:
        """The callback as a test fixture: what was said and proved, and what it comes to."""
        self.access.require(request)
        return answer(fixture_document(await self.inbox.explain(request.path_params["id"])))


# -- what is shown


def entry_document(entry: Entry) -> Document:
    """One line of the list. Nothing is digested of what is no news."""
    document = {
        "id": entry.id,
        "provider": entry.provider,
        "taskId": entry.task_id,
        "attempt": entry.attempt,
        "verdict": entry.verdict,
        "status": entry.status,
        "reason": entry.reason,
        "receivedAt": iso(entry.received_at),
        "lagSeconds": _lag(entry),
        "digestedAt": iso(entry.digested_at) if entry.is_news else None,
    }
    return document if entry.replay_of is None else {**document, "replayOf": entry.replay_of}


def _lag(entry: Entry) -> float | None:
    """How long it was on its way. The provider's clock may be ahead of ours: then not at all."""
    return None if entry.job_ended_at is None else round(max(0.0, entry.received_at - entry.job_ended_at), 3)


def hook_document(hook: Hook) -> Document:
    return {
        **entry_document(hook),
        "headers": json.loads(hook.headers),
        "query": json.loads(hook.query),
        "proofs": json.loads(hook.proofs),
        "body": hook.body,
    }


def explained(told: Explanation) -> Document:
    return {
        "id": told.hook.id,
        "was": {"verdict": told.hook.verdict, "status": told.hook.status, "reason": told.hook.reason},
        "names": list(told.verified.job_ids),
        "taskId": told.verified.task.id if told.verified.task else None,
        "attempt": told.hook.attempt,
        "verdict": told.verified.decision.verification.value,
        "status": told.verified.decision.status,
        "reason": told.verified.decision.reason,
        "takenAs": told.replayed_as.value if told.replayed_as else None,
        "report": report_document(told.report) if told.report else None,
        "says": in_words(told.report) if told.report else "nothing that can be read",
        "effect": told.effect,
    }


def fixture_document(told: Explanation) -> Document:
    """`tests/fixtures/callbacks` runs it: `body` and `proofs` must come to what `expected` says."""
    hook = told.hook
    return {
        "provider": hook.provider,
        "receivedAt": iso(hook.received_at),
        "headers": json.loads(hook.headers),
        "query": json.loads(hook.query),
        "body": hook.body,
        "proofs": vars(told.verified.evidence),
        "was": {"verdict": hook.verdict, "status": hook.status, "reason": hook.reason},
        "expected": {
            "names": list(told.verified.job_ids),
            "report": report_document(told.report) if told.report else None,
            "verdict": told.verified.decision.verification.value,
            "status": told.verified.decision.status,
        },
    }


def report_document(report: Report) -> Document:
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


def in_words(report: Report) -> str:
    match report:
        case Pending(check_in=0):
            return "nothing certain: the provider is to be asked"
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


# -- what is asked for


def _verdict(request: Request) -> str | None:
    text = request.query_params.get("verdict") or None
    if text is not None and text not in set(Verification):
        raise Refusal("invalid_request", f"verdict must be one of {', '.join(Verification)}.", field="verdict")
    return text


def _truth(request: Request, field: str) -> bool:
    text = request.query_params.get(field, "").lower()
    if text not in _TRUTHS:
        raise Refusal("invalid_request", f"{field} must be true or false.", field=field)
    return _TRUTHS[text]
