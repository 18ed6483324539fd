"""The adapter for Replicate.

POST {base}/v1/models/{model}/predictions   {"input", "webhook", "webhook_events_filter"} → a prediction
GET  {base}/v1/predictions/{id}             → the prediction
callback                                    the prediction

Rules cited as "Replicate: …" are from replicate.com/docs, pages HTTP API, Webhooks, Rate limits, Data retention; others
were seen in the sources of its SDKs and of public models.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from broker.orders import Reference
from broker.providers import parsing
from broker.providers.base import ProviderContext, ResultSink
from broker.providers.job_api import JobApi, running
from broker.providers.parsing import FailureWords, ParsedResponse
from broker.providers.replicate.errors import ERRORS
from broker.providers.replicate.settings import ReplicateSettings
from broker.providers.responses import ProviderResponse
from broker.reports import Failed, Finished, Pending, Report

_ERROR_CODE: Final = re.compile(r"\((E\d{3,4})\)(?: \([^()]{1,64}\))?\s*$")
"""Of a model, at the end of its message: "… flagged as sensitive. … (E005)", perhaps with an id behind it. Elsewhere in
a message it may be part of a prompt."""
_RESET: Final = re.compile(r"resets in ~?(\d{1,3})\s?s")
REMOVED: Final = "the provider removed the result: it keeps results for one hour"


class Replicate(JobApi):
    """One account at Replicate."""

    catalog_name = "replicate"
    errors = ERRORS
    id_fields = ("id",)

    def __init__(self, context: ProviderContext) -> None:
        settings: ReplicateSettings = context.settings
        super().__init__(context, base_url=settings.base_url)

    # -- ordering

    def order_url(self, model: str | None, callback_url: str | None) -> str:
        return f"{self.base_url}/v1/models/{model}/predictions"

    def order_body(self, model: str | None, fields: dict[str, Any], callback_url: str | None) -> dict[str, Any]:
        """Return the body of an order. Without a filter Replicate calls back about progress, too."""
        events = ["completed"] if callback_url else None
        return {"input": fields, "webhook": callback_url, "webhook_events_filter": events}

    def read_order_response(self, response: ProviderResponse) -> Report:
        """Return the report in a prediction, which may have ended already. A 404 is about the model."""
        if response.proves_refusal:
            return replace(self.reports.refusal(response), cannot_serve=response.status == 404)
        parsed = _parse(response.body)
        if response.is_success and parsed.job_id:
            return self._end_of_job(parsed, response.body) or Pending(job_id=parsed.job_id)
        raise self.reports.error("predictions", response)

    async def upload_reference(self, reference: Reference) -> str | Failed:
        """Upload one reference (Replicate: Files API); it is kept for 24 hours."""
        return await self.upload_file("/v1/files", reference, "urls.get", field="content")

    # -- results

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        response = await self.request("GET", f"/v1/predictions/{quote(job_id, safe='')}")
        parsed = _parse(response.body)
        if not response.is_success or parsed.job_id != job_id:
            raise self.reports.error("prediction", response)
        return self._end_of_job(parsed, response.body) or running(parsed, job_id)

    def parse_callback(self, body: Any) -> Report:
        parsed = _parse(body)
        if parsed.state == "running":
            return running(parsed, parsed.job_id)
        report = self._end_of_job(parsed, body)
        is_empty = isinstance(report, Finished) and not report.outputs
        return report if report and not is_empty else Pending(job_id=parsed.job_id, check_in=0)

    def _end_of_job(self, parsed: ParsedResponse, body: Any) -> Report | None:
        """Return the end of a prediction, or None."""
        if parsed.state == "failed":
            return self.reports.job_failed(parsed, parsed.job_id, _failure_of(parsed))
        if parsed.state != "done":
            return None
        if not parsed.outputs and parsing.mapping(body).get("data_removed") is True:
            return Failed(code="result_gone", message=REMOVED, retryable=True, billed="yes", job_id=parsed.job_id)
        return Finished(outputs=parsed.outputs, job_id=parsed.job_id, ended_at=parsed.ended_at)

    async def cancel(self, job_id: str) -> bool:
        response = await self.request("POST", f"/v1/predictions/{quote(job_id, safe='')}/cancel")
        return response.is_success

    async def request(self, method: str, path: str, **options: Any) -> ProviderResponse:
        """Send a request; a rate limit without `Retry-After` says in its message how long it lasts."""
        response = await super().request(method, path, **options)
        found = _RESET.search(response.message) if response.status == 429 and response.wait_seconds is None else None
        return replace(response, wait_seconds=float(found[1])) if found else response


def _parse(body: Any) -> ParsedResponse:
    return ParsedResponse(body, id_fields=Replicate.id_fields)


def _failure_of(parsed: ParsedResponse) -> FailureWords:
    words = parsed.failure
    found = _ERROR_CODE.search(words.message)
    return replace(words, names=(found[1], *words.names)) if found else words
