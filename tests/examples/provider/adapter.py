"""The adapter of the example provider.

POST {base}/v1/images        {"model", "prompt", "shape", "webhook"} → {"id", "status"}
GET  {base}/v1/images/{id}   → {"id", "status", "url"}
callback                     {"id", "status", "url"}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from broker.catalog import Catalog, Wire
from broker.errors import NotSent
from broker.net.api_client import ApiClient, HttpResponse
from broker.orders import Order
from broker.providers import parsing, responses
from broker.providers.base import STATUS_TIMEOUT_SECONDS, ProviderContext
from broker.providers.error_codes import HTTP_ACCOUNT, HTTP_ORDER, NO_IMAGE, ErrorTable
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse
from broker.reports import Failed, Finished, Pending, Report
from tests.examples.provider.settings import ExampleSettings

ID_FIELDS: Final = ("id",)
ERRORS: Final = ErrorTable(account=HTTP_ACCOUNT, order={**HTTP_ORDER, 410: NO_IMAGE})
"""HTTP statuses; 410: the job produced no image."""


@dataclass(kw_only=True, eq=False)
class ExampleProvider:
    """One account at the example provider."""

    name: str
    key_id: str
    callback_path: str = "/api/webhook/example"
    base_url: str
    api_key: str = field(repr=False)
    client: ApiClient
    catalog: Catalog
    now: Callable[[], float]
    creates_per_10s: int
    concurrency: int

    def supports(self, model: str) -> bool:
        return self.catalog.serves(self.name, model)

    def build_request(self, order: Order, callback_url: str | None) -> dict[str, Any]:
        wire = self.catalog.wire(self.name, order.params.model, order.mode) or Wire()
        return {
            "method": "POST",
            "url": f"{self.base_url}/v1/images",
            "json": _body(wire, order, self._redact(callback_url) if callback_url else None),
            "price": self.catalog.price(self.name, order.params.model, order.mode, order.params.resolution),
            "unit": self.catalog.unit(self.name),
        }

    def ignored(self, order: Order) -> tuple[str, ...]:
        return self.catalog.ignored(self.name, order)

    async def upload_references(self, order: Order) -> Order | Failed:
        return order

    async def submit(self, order: Order, callback_url: str | None) -> Report:
        wire = self.catalog.wire(self.name, order.params.model, order.mode)
        if wire is None:
            return responses.model_not_served(self.name, order)
        body = _body(wire, order, callback_url)
        try:
            http = await self.client.request("POST", f"{self.base_url}/v1/images", headers=self._headers(), json=body)
        except NotSent as error:
            return responses.order_not_sent(error, self._redact)
        response = self._parse(http)
        if response.is_success and response.parsed.job_id:
            return Pending(job_id=response.parsed.job_id)
        if response.proves_refusal:
            return response.to_refusal(self._redact)
        raise response.to_error(f"{self.name}: submit", self._redact)

    async def check(self, job_id: str) -> Report:
        url = f"{self.base_url}/v1/images/{quote(job_id, safe='')}"
        http = await self.client.request("GET", url, headers=self._headers(), timeout=STATUS_TIMEOUT_SECONDS)
        response = self._parse(http)
        if not response.is_success:
            raise response.to_error(f"{self.name}: check", self._redact)
        return self._report(response.parsed) or Pending(job_id=job_id)

    def parse_callback(self, body: Any) -> Report:
        parsed = ParsedResponse.from_body(body, id_fields=ID_FIELDS)
        return self._report(parsed) or Pending(job_id=parsed.job_id, check_in=0)

    def job_ids(self, body: Any) -> tuple[str, ...]:
        return ParsedResponse.from_body(body, id_fields=ID_FIELDS).ids

    async def cancel(self, job_id: str) -> bool:
        return False

    async def refresh_url(self, url: str) -> str | None:
        return None

    async def balance(self) -> float | None:
        return None

    def _report(self, parsed: ParsedResponse) -> Report | None:
        match parsed.state:
            case "done":
                return Finished(outputs=parsed.outputs, job_id=parsed.job_id)
            case "failed":
                return responses.job_failed(parsed, parsed.job_id, ERRORS, self._redact)
        return None

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Key {self.api_key}"}

    def _parse(self, http: HttpResponse) -> ProviderResponse:
        return ProviderResponse.from_http(http, self.now(), ERRORS, id_fields=ID_FIELDS)

    def _redact(self, text: str) -> str:
        return parsing.redact(text, (self.api_key,))


def open_example(context: ProviderContext) -> ExampleProvider:
    """Return the adapter for the configured account."""
    settings: ExampleSettings = context.settings
    if settings.example_key is None:
        raise ValueError("EXAMPLE_API_KEY is not set")
    return ExampleProvider(
        name=context.name,
        key_id=context.key_id,
        base_url=settings.example_url,
        api_key=settings.example_key.get_secret_value(),
        client=context.client,
        catalog=context.catalog,
        now=context.now,
        creates_per_10s=context.creates_per_10s,
        concurrency=context.concurrency,
    )


def _body(wire: Wire, order: Order, callback_url: str | None) -> dict[str, Any]:
    body = {"model": wire.model, **wire.spell(order, ())}
    return body | ({"webhook": callback_url} if callback_url else {})
