"""The adapter for nanobananaapi.ai.

POST {base}/api/v1/nanobanana/{generate|generate-pro|generate-2}   → {"code", "msg", "data": {"taskId"}}
GET  {base}/api/v1/nanobanana/record-info?taskId=                  → {"code", "msg", "data": a record}
callback of generate                                               {"code", "msg", "data": {"taskId", "info"}}
callback of the others                                             as record-info

Rules are from docs.nanobananaapi.ai, pages of the three endpoints and of their callbacks, and Get Task Details. As at
kie.ai, the body's code decides, whatever the HTTP status. In a record it does not: a failed job has code 200, and
`successFlag` decides.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from broker.errors import ProviderError
from broker.providers import parsing
from broker.providers.base import ProviderContext, ResultSink
from broker.providers.job_api import JobApi, running
from broker.providers.nanobananaapi.errors import ERRORS
from broker.providers.nanobananaapi.settings import NanoBananaApiSettings
from broker.providers.parsing import ParsedResponse, State
from broker.providers.responses import ProviderResponse
from broker.reports import Finished, Pending, Report

FIRST_ENDPOINT: Final = "generate"
"""The one whose body differs from that of the others."""
TEXT_TO_IMAGE: Final = "TEXTTOIAMGE"
IMAGE_TO_IMAGE: Final = "IMAGETOIAMGE"
"""The misspelling is the documented value."""
_FLAGS: Final[dict[int, State]] = {0: "running", 1: "done", 2: "failed", 3: "failed"}
FAILED_IN_CALLBACK: Final = frozenset({400, 500, 501})
"""Codes with which `generate` calls back about a failed job: content refused, internal error, generation failed."""


class NanoBananaApi(JobApi):
    """One account at nanobananaapi.ai. No upload is documented: references need a public URL."""

    catalog_name = "nanobananaapi"
    errors = ERRORS

    def __init__(self, context: ProviderContext) -> None:
        settings: NanoBananaApiSettings = context.settings
        super().__init__(context, base_url=settings.base_url)

    # -- ordering

    def order_url(self, model: str | None, callback_url: str | None) -> str:
        return f"{self.base_url}/api/v1/nanobanana/{model}"

    def order_body(self, model: str | None, fields: dict[str, Any], callback_url: str | None) -> dict[str, Any]:
        body = {**fields, "callBackUrl": callback_url}
        if model == FIRST_ENDPOINT:
            body |= {"type": IMAGE_TO_IMAGE if "imageUrls" in fields else TEXT_TO_IMAGE, "numImages": 1}
        return body

    def read_order_response(self, response: ProviderResponse) -> Report:
        if response.parsed.job_id:
            return Pending(job_id=response.parsed.job_id)
        if response.proves_refusal:
            return replace(self.reports.refusal(response), cannot_serve=response.status == 404)
        raise self.reports.error("generate", response)

    # -- results

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        response = await self.request("GET", "/api/v1/nanobanana/record-info", params={"taskId": job_id})
        parsed = _Record(response.body)
        if parsed.ids and job_id not in parsed.ids:
            raise ProviderError(f"{self.name}: record-info answered about another job")
        if not response.is_success or not parsed.ids:
            raise self.reports.error("record-info", response)
        if parsed.state == "done":
            return Finished(outputs=parsed.outputs, job_id=job_id)
        return self.reports.job_failed(parsed, job_id) if parsed.state == "failed" else running(parsed, job_id)

    def parse_callback(self, body: Any) -> Report:
        """Parse a record, or the callback of `generate`, which has no flag; what contradicts itself means: poll."""
        parsed = _Record(body)
        is_success = parsed.code in parsing.SUCCESS_CODES
        if parsed.state == "running":
            return running(parsed, parsed.job_id)
        if parsed.state == "failed" or (parsed.state is None and parsed.code in FAILED_IN_CALLBACK):
            return self.reports.job_failed(parsed, parsed.job_id)
        if parsed.outputs and (parsed.state == "done" or (parsed.state is None and is_success)):
            return Finished(outputs=parsed.outputs, job_id=parsed.job_id)
        return Pending(job_id=parsed.job_id, check_in=0)

    # -- account

    async def balance(self) -> float | None:
        """Return the credits (Get Account Credits)."""
        response = await self.request("GET", "/api/v1/common/credit")
        left = parsing.amount(parsing.mapping(response.body).get("data"))
        if response.is_success and left is not None:
            return left
        raise self.reports.error("credit", response, can_be_permanent=True)


class _Record(ParsedResponse):
    """A body with the state of its flag. Its times can be impossible, like 24:00:00, and are not read."""

    @cached_property
    def state(self) -> State | None:
        flag = parsing.to_code(self.record.get("successFlag"))
        return None if flag is None else _FLAGS.get(flag, "unknown")

    @property
    def ended_at(self) -> float | None:
        return None
