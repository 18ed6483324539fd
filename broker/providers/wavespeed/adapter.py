"""The adapter for WaveSpeed.

POST {base}/api/v3/{model}?webhook=<URL>      the input itself → {"code", "data": a prediction}
GET  {base}/api/v3/predictions/{id}/result    → {"code", "data": the prediction}
callback                                      the prediction, without an envelope

Rules cited as "WaveSpeed: …" are from wavespeed.ai/docs, pages How to Use Webhooks, Verifying Webhooks, Models.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

from broker.orders import Reference
from broker.providers import parsing
from broker.providers.base import ProviderContext, ResultSink
from broker.providers.job_api import JobApi, running
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse
from broker.providers.wavespeed.errors import ERRORS
from broker.providers.wavespeed.settings import WaveSpeedSettings
from broker.reports import Failed, Finished, Pending, Report


class WaveSpeed(JobApi):
    """One account at WaveSpeed."""

    catalog_name = "wavespeed"
    errors = ERRORS
    id_fields = ("id",)

    def __init__(self, context: ProviderContext) -> None:
        settings: WaveSpeedSettings = context.settings
        super().__init__(context, base_url=settings.base_url)

    # -- ordering

    def order_url(self, model: str | None, callback_url: str | None) -> str:
        query = f"?{urlencode({'webhook': callback_url})}" if callback_url else ""
        return f"{self.base_url}/api/v3/{model}{query}"

    def order_body(self, model: str | None, fields: dict[str, Any], callback_url: str | None) -> dict[str, Any]:
        return fields

    def read_order_response(self, response: ProviderResponse) -> Report:
        """Return the report in the envelope of a prediction. A 404 is about the model."""
        if response.proves_refusal:
            return replace(self.reports.refusal(response), cannot_serve=response.status == 404)
        if response.is_success and response.parsed.job_id:
            return self._end_of_job(response.parsed) or Pending(job_id=response.parsed.job_id)
        raise self.reports.error("order", response)

    async def upload_reference(self, reference: Reference) -> str | Failed:
        """Upload one reference (WaveSpeed: Upload files)."""
        return await self.upload_file("/api/v3/media/upload/binary", reference, "data.download_url")

    # -- results

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        response = await self.request("GET", f"/api/v3/predictions/{quote(job_id, safe='')}/result")
        parsed = response.parsed
        if not response.is_success or job_id not in parsed.ids:
            raise self.reports.error("result", response)
        if parsed.state == "done":
            return Finished(outputs=parsed.outputs, job_id=job_id)
        return self._end_of_job(parsed) or running(parsed, job_id)

    def parse_callback(self, body: Any) -> Report:
        parsed = ParsedResponse(body, id_fields=self.id_fields)
        if parsed.state == "running":
            return running(parsed, parsed.job_id)
        return self._end_of_job(parsed) or Pending(job_id=parsed.job_id, check_in=0)

    def _end_of_job(self, parsed: ParsedResponse) -> Report | None:
        """Return a failure or a result; None for everything else. A failed job is refunded (WaveSpeed: model pages)."""
        if parsed.state == "failed":
            return replace(self.reports.job_failed(parsed, parsed.job_id), billed="no")
        if parsed.state == "done" and parsed.outputs:
            return Finished(outputs=parsed.outputs, job_id=parsed.job_id)
        return None

    # -- account

    async def balance(self) -> float | None:
        response = await self.request("GET", "/api/v3/balance")
        left = parsing.first(parsing.amount, parsing.values_at((response.body,), "data.balance"))
        if response.is_success and left is not None:
            return left
        raise self.reports.error("balance", response, can_be_permanent=True)
