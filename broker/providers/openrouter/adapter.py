"""The adapter for OpenRouter's Images API (openrouter.ai: Images).

POST {base}/api/v1/images  {"model", "prompt", "aspect_ratio", "resolution", "n", "input_references"}
                           → {"data": [{"b64_json", "media_type"}], "usage": {"cost"}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from broker.errors import NotSent
from broker.orders import Order, Reference
from broker.providers import parsing
from broker.providers.base import ProviderContext, ResultSink
from broker.providers.error_codes import NO_IMAGE
from broker.providers.held_api import HeldApi
from broker.providers.inline_requests import stream_body
from broker.providers.inline_results import InlineDocument, read_inline_results
from broker.providers.openrouter.errors import ERRORS
from broker.providers.openrouter.settings import OpenRouterSettings
from broker.providers.responses import ProviderResponse
from broker.reports import Failed, Finished, Report


class OpenRouter(HeldApi):
    """One key of OpenRouter."""

    catalog_name = "openrouter"
    errors = ERRORS
    order_path = "/api/v1/images"

    def __init__(self, context: ProviderContext) -> None:
        settings: OpenRouterSettings = context.settings
        super().__init__(context, base_url=settings.base_url)

    def order_body(self, model: str | None, fields: dict[str, Any], callback_url: str | None) -> dict[str, Any]:
        references = fields.pop("input_references", [])
        listed = [{"type": "image_url", "image_url": {"url": url}} for url in references]
        return {"model": model, "n": 1, **fields, "input_references": listed or None}

    def public_url(self, reference: Reference) -> str | None:
        return None  # the image itself is sent: it works without a public URL, and nothing is fetched later

    async def submit(self, order: Order, callback_url: str | None, sink: ResultSink) -> Report:
        wire = self.find_wire(order)
        if wire is None:
            return self.not_served(order)

        def build_body(data: Sequence[str]) -> dict[str, Any]:
            pairs = zip(order.references, data, strict=True)
            urls = [f"data:{reference.media_type};base64,{text}" for reference, text in pairs]
            return self._body(wire, order, urls, None)

        body = stream_body(build_body, order.references)
        try:
            async with self.stream("POST", self.order_path, body=body, resolution=order.params.resolution) as response:
                if not 200 <= response.status < 300:
                    return self._read_error(await self.read_whole(response))
                document = await read_inline_results(response.chunks, sink, is_image=_is_image)
        except NotSent as error:
            return self.reports.not_sent(error)
        return self._read_answer(document, response.status)

    async def balance(self) -> float | None:
        """Return what the key may still spend, in USD (openrouter.ai: API keys); None for a key without a limit."""
        response = await self.request("GET", "/api/v1/key")
        if response.is_success:
            return parsing.first(parsing.amount, parsing.values_at([response.body], "data.limit_remaining"))
        raise self.reports.error("key", response, can_be_permanent=True)

    def _read_answer(self, document: InlineDocument, status: int) -> Report:
        body = parsing.mapping(document.body)
        items = body.get("data")
        if not isinstance(items, list):
            return self._read_error(ProviderResponse.from_body(body, status=status).unwrap_error(), is_answered=True)
        outputs = [output for item in items if (output := _read_output(parsing.mapping(item), document.outputs))]
        cost = parsing.first(parsing.amount, parsing.values_at([body], "usage.cost"))
        if outputs:
            return Finished(outputs=tuple(outputs), cost=cost)
        return Failed(
            code=NO_IMAGE.code,
            message="the answer has no image",
            retryable=False,
            billed="unknown" if cost is None else "yes" if cost else "no",
        )

    def _read_error(self, response: ProviderResponse, *, is_answered: bool = False) -> Failed:
        """Return the report of a failure. Raises `ProviderError` for an error that may come before the work ends.

        is_answered: the error came within HTTP 200, after the work began; what it cost is not said.
        """
        if response.proves_refusal or (is_answered and response.status >= 500):
            refusal = replace(self.reports.refusal(response), cannot_serve=response.status == 404)
            return replace(refusal, billed="unknown") if is_answered and not response.is_unpaid else refusal
        raise self.reports.error("images", response)


def _is_image(enclosing: str, name: str) -> bool:
    return name == "b64_json"


def _read_output(item: Mapping[str, Any], outputs: frozenset[str]) -> str | None:
    """Return the image of an item: an output of the sink, or a link."""
    values = (item.get("b64_json"), item.get("url"))
    return next((one for one in values if isinstance(one, str) and (one in outputs or parsing.is_link(one))), None)
