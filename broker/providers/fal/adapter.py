"""The adapter for fal's queue.

POST {base}/{model}?fal_webhook=<URL>                the input itself → {"request_id", "status", …}
GET  {base}/{owner}/{app}/requests/{id}/status       → {"status"}: IN_QUEUE, IN_PROGRESS, COMPLETED
GET  {base}/{owner}/{app}/requests/{id}              → the output, or the error with its own HTTP status
PUT  {base}/{owner}/{app}/requests/{id}/cancel
callback                                             {"request_id", "status": OK | ERROR, "payload", "error"}

The job id of an attempt is the path `{owner}/{app}/requests/{id}`, which is all that a later request needs; a model's
sub-path such as `/edit` is not part of it. A callback names the request alone, without the app, so its report has no
job id, and `job_ids` has the path for every app.

Rules cited as "fal: …" are from fal.ai/docs, pages Queue, Webhooks, Request Errors, Model Errors, FAQ; others were seen
in the sources of its clients.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote, urlencode

from broker.errors import DownloadError, ProviderError
from broker.net.http_request import StreamedBody
from broker.orders import Order, Reference
from broker.providers import parsing
from broker.providers.base import ProviderContext, ResultSink
from broker.providers.fal.errors import ERRORS
from broker.providers.fal.settings import FalSettings
from broker.providers.job_api import JobApi, new_file_name
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse
from broker.reports import Failed, Finished, Pending, Report

UPLOAD_SECONDS: Final = 120.0
READ_ERRORS: Final = frozenset({401, 403, 404, 408, 429})
"""Statuses of a result that are about the key, the address or the moment, whatever became of the job."""
_STATUS_IN_ERROR: Final = re.compile(r"Invalid status code: (\d{3})")
"""The whole `error` of a callback; within a longer text it may be part of a prompt."""


class Fal(JobApi):
    """One account at fal."""

    catalog_name = "fal"
    auth_scheme = "Key"
    errors = ERRORS
    id_fields = ("request_id",)

    def __init__(self, context: ProviderContext) -> None:
        self._settings: FalSettings = context.settings
        super().__init__(context, base_url=self._settings.base_url)

    # -- ordering

    def order_url(self, model: str | None, callback_url: str | None) -> str:
        query = f"?{urlencode({'fal_webhook': callback_url})}" if callback_url else ""
        return f"{self.base_url}/{model}{query}"

    def order_body(self, model: str | None, fields: dict[str, Any], callback_url: str | None) -> dict[str, Any]:
        return fields

    async def submit(self, order: Order, callback_url: str | None, sink: ResultSink) -> Report:
        report = await super().submit(order, callback_url, sink)
        wire = self.context.catalog.wire(self.catalog_name, order.params.model, order.mode)
        if isinstance(report, Pending) and report.job_id and wire and wire.model:
            return replace(report, job_id=_job_path(wire.model, report.job_id))
        return report

    def read_order_response(self, response: ProviderResponse) -> Report:
        """Return the report in a response to an order. A 404 is about the app."""
        if response.proves_refusal:
            return replace(self.reports.refusal(response), cannot_serve=response.status == 404)
        if response.is_success and response.parsed.job_id:
            return Pending(job_id=response.parsed.job_id)
        raise self.reports.error("order", response)

    async def upload_reference(self, reference: Reference) -> str | Failed:
        """Upload one reference: its address first, then its bytes. A failure costs nothing: nothing is ordered yet."""
        url = f"{self._settings.rest_url}/storage/upload/initiate?storage_type=fal-cdn-v3"
        try:
            response = await self.request(
                "POST", url, json={"file_name": new_file_name(reference), "content_type": reference.media_type}
            )
            links = parsing.mapping(response.body)
            upload_url, file_url = links.get("upload_url"), links.get("file_url")
            if response.is_permanent:
                return self.reports.refusal(response)
            if not response.is_success or not parsing.links([upload_url]) or not parsing.links([file_url]):
                return self.reports.not_sent(self.reports.error("upload", response))
            body = StreamedBody(size=reference.size, chunks=reference.read(), media_type=reference.media_type)
            # the address is its own permission, so without the key; fal names it, so like that of a result
            status = await self.context.fetcher.put(str(upload_url), body, timeout=UPLOAD_SECONDS)
        except ProviderError as error:
            return self.reports.not_sent(error)
        except DownloadError as error:
            return self.reports.not_sent(ProviderError(f"upload: {error}"))
        if not 200 <= status < 300:
            return self.reports.not_sent(ProviderError(f"{self.name}: upload answered HTTP {status}"))
        return str(file_url)

    # -- results

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        """Read the status, and after the end the output. COMPLETED is said of failures, too (fal: Queue)."""
        path = f"/{quote(job_id, safe='/')}"
        response = await self.request("GET", f"{path}/status")
        status, error = _status_and_error(response.body)
        if not response.is_success or status is None:
            raise self.reports.error("status", response)
        if status != "COMPLETED":
            return Pending(job_id=job_id, stage=response.parsed.stage)
        output = await self.request("GET", path)
        if output.is_success and isinstance(output.body, dict):
            finished = self._finished(output.body, job_id)
            return finished if finished.outputs or not error else self._job_failed(output.body, None, error, job_id)
        if _is_error_of_the_job(output, is_expected=error is not None):
            report = self._job_failed(output.body, output.status, error, job_id)
            is_known = output.status < 500 or _is_of_the_app(output.body)
            return report if is_known else replace(report, billed="unknown")
        raise self.reports.error("result", output)

    def parse_callback(self, body: Any) -> Report:
        """Return the report in a callback; one without its payload, or without an image in it, means: poll."""
        top = parsing.mapping(body)
        status, error = _status_and_error(top)
        payload = top.get("payload")
        if status == "ERROR" and not top.get("payload_error"):
            code = _STATUS_IN_ERROR.fullmatch(error or "")
            return self._job_failed(payload, int(code[1]) if code else None, error, None)
        finished = self._finished(parsing.mapping(payload), None)
        return finished if status == "OK" and finished.outputs else Pending(check_in=0)

    def job_ids(self, body: Any) -> tuple[str, ...]:
        """Return the job id for every app, then the bare id. `gateway_request_id` is another after fal's own retries.

        A simulated callback has the broker's task id in its place.
        """
        request_id = parsing.label(parsing.mapping(body).get("request_id"))
        models = [
            wire.model
            for model in self.context.catalog.models
            for wire in model.providers.get(self.catalog_name, {}).values()
            if wire.model
        ]
        paths = [_job_path(model, request_id) for model in models] if request_id else []
        return (*dict.fromkeys(path for path in paths if len(path) <= 256), *([request_id] if request_id else []))

    def _finished(self, output: Mapping[str, Any], job_id: str | None) -> Finished:
        urls = parsing.links(list(parsing.values_at((output,), "images.*.url")))
        return Finished(outputs=urls, job_id=job_id, texts=parsing.texts([output.get("description")]))

    def _job_failed(self, body: Any, code: int | None, error: str | None, job_id: str | None) -> Failed:
        """Return the report of a failed job. body: that of the app, with `detail`; code: its HTTP status, if known.

        A failure by the server (5xx) is never charged; a rejected input may be (fal: FAQ).
        """
        parsed = ParsedResponse(body if parsing.mapping(body).get("detail") else {"error": error})
        failure = replace(parsed.failure, code=str(code) if code else None)
        report = self.reports.job_failed(parsed, job_id, failure)
        is_free = code is not None and code >= 500
        return replace(
            report,
            billed="no" if is_free else report.billed,
            provider_code=self.reports.redact(next(iter(failure.names), "")) or report.provider_code,
        )

    async def cancel(self, job_id: str) -> bool:
        response = await self.request("PUT", f"/{quote(job_id, safe='/')}/cancel")
        return response.is_success


def _job_path(model: str, request_id: str) -> str:
    """Return the path of a request. Its app is the model's id without a sub-path (fal: Queue)."""
    return f"{'/'.join(model.split('/')[:2])}/requests/{request_id}"


def _status_and_error(body: Any) -> tuple[str | None, str | None]:
    top = parsing.mapping(body)
    return parsing.text(top.get("status")), parsing.text(top.get("error"))


def _is_error_of_the_job(output: ProviderResponse, *, is_expected: bool) -> bool:
    """Return whether the response to a result is the failure of the job, and not one of reading it.

    is_expected: the status named an error. Without it only the forms count that no gateway has; "Request is still in
    progress" has none of them.
    """
    if output.status < 400 or output.status in READ_ERRORS:
        return False
    return is_expected or _is_of_the_app(output.body)


def _is_of_the_app(body: Any) -> bool:
    """Return whether an error has a form that no gateway has: a gateway's status says nothing about the job."""
    top = parsing.mapping(body)
    return isinstance(top.get("detail"), list) or "error_type" in top
