"""The adapter for kie.ai and relays with the same API, the sandbox server included.

Rules cited as "kie.ai: …" are from docs.kie.ai, pages Market (one per model), Get Task Detail, Webhook Verification,
Download URL, Get Account Credits, File Upload API and Getting Started; others were seen in public integrations.

A refusal arrives as an HTTP status or, with HTTP 200, as the body's `code`; both are read, the code first. A response
with a job id is an accepted order whatever code accompanies it: the id is the only way to find a paid image, and
polling it is free.
"""

from __future__ import annotations

from typing import Any, Final

from broker.errors import ProviderError
from broker.orders import Reference
from broker.providers import parsing
from broker.providers.base import ProviderContext, ResultSink
from broker.providers.job_api import JobApi, running
from broker.providers.kie.errors import ERRORS
from broker.providers.kie.settings import KieSettings
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse
from broker.reports import Failed, Finished, Pending, Report

ENDED: Final = frozenset({408, 501, 531})
"""Envelope codes of Get Task Detail about a job that ended: no result in time, failed, refunded."""
ENDED_IN_CALLBACK: Final = ENDED | {400, 413, 422, 451, 500}
"""kie.ai calls back only when a job has ended; these codes give the outcome (400: content refused)."""
UPLOAD_FOLDER: Final = "references"


class Kie(JobApi):
    """One account at kie.ai, or the sandbox server, which needs no key."""

    catalog_name = "kie"
    errors = ERRORS
    order_path = "/api/v1/jobs/createTask"
    callback_path = "/api/webhook/nano-banana"

    def __init__(self, context: ProviderContext) -> None:
        settings: KieSettings = context.settings
        super().__init__(context, base_url=settings.base_url)
        self.creates_per_10s = settings.creates_per_10s or context.creates_per_10s
        self._settings = settings

    # -- ordering

    def order_body(self, model: str | None, fields: dict[str, Any], callback_url: str | None) -> dict[str, Any]:
        """Return the body of createTask. kie.ai calls back only if `callBackUrl`, in this spelling, is present."""
        return {"model": model, "input": fields, "callBackUrl": callback_url}

    def read_order_response(self, response: ProviderResponse) -> Report:
        """Return the report in a response to createTask (kie.ai: Market). 429 created and charged nothing.

        Code 500, HTTP 5xx and 408 may follow an accepted order.
        """
        if response.parsed.job_id:
            return Pending(job_id=response.parsed.job_id)
        if response.proves_refusal:
            return self.reports.refusal(response)
        raise self.reports.error("createTask", response)

    # -- references

    def public_url(self, reference: Reference) -> str | None:
        return None if self._settings.upload_references and not reference.is_uploaded else reference.url

    async def upload_reference(self, reference: Reference) -> str | Failed:
        """Upload one reference (kie.ai: File Stream Upload)."""
        return await self.upload_file(
            f"{self._settings.upload_url}/api/file-stream-upload",
            reference,
            "data.downloadUrl",
            "data.fileUrl",
            form={"uploadPath": UPLOAD_FOLDER, "fileName": "{name}"},
        )

    # -- results

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        """Poll a job (kie.ai: Get Task Detail). It may be unknown there (404, 422) for a while after the order.

        Errors are never permanent: the job may exist and be paid. The deadline ends the polling.
        """
        response = await self.request("GET", "/api/v1/jobs/recordInfo", params={"taskId": job_id})
        parsed = response.parsed
        if response.body is None:
            parsed = ParsedResponse(parsing.salvage_record(response.content.decode("utf-8", "replace")))
        if parsed.ids and job_id not in parsed.ids:
            raise ProviderError(f"{self.name}: recordInfo answered about another job")
        match parsed.state:
            case "done" if parsed.ids:
                return Finished(outputs=parsed.outputs, job_id=job_id, cost=parsed.cost)
            case "failed" if parsed.ids:
                return self.reports.job_failed(parsed, job_id)
            case None if parsed.code in ENDED:
                return self.reports.job_failed(parsed, job_id)
            case "running" | "unknown" | None if parsed.ids and response.is_success:
                return running(parsed, job_id)
        raise self.reports.error("recordInfo", response)

    def parse_callback(self, body: Any) -> Report:
        """Parse kie.ai's record with its code, the older `{"task_id", "status", "output"}`, or that of a sibling.

        A contradiction between code and state, or an unreadable body, means: poll.
        """
        parsed = ParsedResponse(body)
        is_success = parsed.code is None or parsed.code in parsing.SUCCESS_CODES
        match parsed.state:
            case "done" | None if is_success and parsed.outputs:
                return Finished(
                    outputs=parsed.outputs, job_id=parsed.job_id, cost=parsed.cost, ended_at=parsed.ended_at
                )
            case "failed" if parsed.code is None or not is_success:
                return self.reports.job_failed(parsed, parsed.job_id)
            case None if parsed.code in ENDED_IN_CALLBACK and not parsed.outputs:
                return self.reports.job_failed(parsed, parsed.job_id)
            case "running" if is_success:
                return running(parsed, parsed.job_id)
        return Pending(job_id=parsed.job_id, check_in=0)

    # -- account and links

    async def refresh_url(self, url: str) -> str | None:
        """Request a link valid for 20 minutes (kie.ai: Download URL); 422 means that the URL is foreign."""
        response = await self.request("POST", "/api/v1/common/download-url", json={"url": url})
        if response.is_success and (found := parsing.links(parsing.mapping(response.body).get("data"))):
            return found[0]
        if response.code in {404, 422}:
            return None
        raise self.reports.error("download-url", response, can_be_permanent=True)

    async def balance(self) -> float | None:
        """Return the credits (kie.ai: Get Account Credits); documented as an integer, in practice a fraction."""
        response = await self.request("GET", "/api/v1/chat/credit")
        left = parsing.amount(parsing.mapping(response.body).get("data"))
        if response.is_success and left is not None:
            return left
        raise self.reports.error("credit", response, can_be_permanent=True)
