"""The adapter of the example provider.

POST {base}/v1/images        {"model", "prompt", "shape", "webhook"} → {"id", "status"}
GET  {base}/v1/images/{id}   → {"id", "status", "url"}
callback                     {"id", "status", "url"}
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from broker.providers.base import ProviderContext, ResultSink
from broker.providers.error_codes import HTTP_ACCOUNT, HTTP_ORDER, NO_IMAGE, ErrorTable
from broker.providers.job_api import JobApi, running
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse
from broker.reports import Finished, Pending, Report
from tests.examples.provider.settings import ExampleSettings


class ExampleProvider(JobApi):
    """One account at the example provider."""

    catalog_name = "example"
    order_path = "/v1/images"
    auth_scheme = "Key"
    errors = ErrorTable(account=HTTP_ACCOUNT, order={**HTTP_ORDER, 410: NO_IMAGE})
    id_fields = ("id",)

    def __init__(self, context: ProviderContext) -> None:
        settings: ExampleSettings = context.settings
        super().__init__(context, base_url=settings.example_url)

    def order_body(self, model: str | None, fields: dict[str, Any], callback_url: str | None) -> dict[str, Any]:
        return {"model": model, **fields, "webhook": callback_url}

    def read_order_response(self, response: ProviderResponse) -> Report:
        if response.is_success and response.parsed.job_id:
            return Pending(job_id=response.parsed.job_id)
        if response.proves_refusal:
            return self.reports.refusal(response)
        raise self.reports.error("submit", response)

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        response = await self.request("GET", f"/v1/images/{quote(job_id, safe='')}")
        if not response.is_success or response.parsed.job_id != job_id:
            raise self.reports.error("check", response)
        return self._report(response.parsed) or running(response.parsed, job_id)

    def parse_callback(self, body: Any) -> Report:
        parsed = ParsedResponse(body, id_fields=self.id_fields)
        if parsed.state == "running":
            return running(parsed, parsed.job_id)
        return self._report(parsed) or Pending(job_id=parsed.job_id, check_in=0)

    def _report(self, parsed: ParsedResponse) -> Report | None:
        """Return the end of a job, or None."""
        if parsed.state == "done" and parsed.outputs:
            return Finished(outputs=parsed.outputs, job_id=parsed.job_id)
        return self.reports.job_failed(parsed, parsed.job_id) if parsed.state == "failed" else None
