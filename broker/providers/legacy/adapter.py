"""The adapter for the older dialect of `…/nano-banana` addresses: resellers such as Unifically, and private gateways.

    POST {base}/generate          {"prompt", "aspect_ratio", "image_urls", "callback_url"} → {"data": {"task_id", …}}
    GET  {base}/status/{task_id}  → {"data": {"task_id", "status", "output": {"image_url"}}}
    callback                      {"task_id", "status", "output": {"image_url"}}

The dialect is documented only in part, so responses are parsed in every spelling seen. The callback URL is sent in one
field, spelt like the others; a strict service would refuse three spellings of it, and one that ignores it is polled.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from broker.providers import parsing
from broker.providers.base import ProviderContext, ResultSink
from broker.providers.job_api import JobApi, running
from broker.providers.legacy.errors import ERRORS
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse
from broker.reports import Finished, Pending, Report


class Legacy(JobApi):
    """One account at a service of this dialect. It has no upload: references need a public URL."""

    catalog_name = "legacy"
    errors = ERRORS
    order_path = "/generate"
    callback_path = "/api/webhook/nano-banana"
    id_fields = parsing.ANY_IDS

    def __init__(self, context: ProviderContext) -> None:
        settings = context.settings  # of the package that owns the variables
        super().__init__(context, base_url=settings.base_url)
        self.creates_per_10s = settings.creates_per_10s or context.creates_per_10s

    def order_body(self, model: str | None, fields: dict[str, Any], callback_url: str | None) -> dict[str, Any]:
        return {**fields, "model": model, "callback_url": callback_url}

    def read_order_response(self, response: ProviderResponse) -> Report:
        """Return the report in a response to generate: some services respond with a job, some with the image.

        A refusal precedes an id here: `id` in an error may be that of the request.
        """
        if response.proves_refusal:
            return self.reports.refusal(response)
        parsed = response.parsed
        # without a state, a `url` beside an id may be a status page
        report = self._end_of_job(parsed, parsed.job_id) if parsed.state or not parsed.job_id else None
        if response.is_success and (report or parsed.job_id):
            return report or Pending(job_id=parsed.job_id)
        raise self.reports.error("generate", response)

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        """Poll a job. An unknown state counts as running."""
        response = await self.request("GET", f"/status/{quote(job_id, safe='')}")
        parsed = response.parsed
        if response.body is None or not response.is_success:
            raise self.reports.error("status", response)
        if parsed.state == "done":
            return Finished(outputs=parsed.outputs, job_id=job_id, cost=parsed.cost)
        return self._end_of_job(parsed, job_id) or running(parsed, job_id)

    def parse_callback(self, body: Any) -> Report:
        parsed = ParsedResponse(body, id_fields=self.id_fields)
        if report := self._end_of_job(parsed, parsed.job_id):
            return report
        return (
            running(parsed, parsed.job_id) if parsed.state == "running" else Pending(job_id=parsed.job_id, check_in=0)
        )

    def _end_of_job(self, parsed: ParsedResponse, job_id: str | None) -> Report | None:
        """Return a failure, or a result without a state that contradicts it; None if the job runs."""
        if parsed.state == "failed":
            return self.reports.job_failed(parsed, job_id)
        if parsed.outputs and parsed.state in {"done", None}:
            return Finished(outputs=parsed.outputs, job_id=job_id, cost=parsed.cost, ended_at=parsed.ended_at)
        return None
