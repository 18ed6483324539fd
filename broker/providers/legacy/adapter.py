"""The adapter for the older dialect of `…/nano-banana` addresses: resellers such as Unifically, and private gateways.

    POST {base}/generate          {"prompt", "aspect_ratio", "image_urls", "callback_url"} → {"data": {"task_id", …}}
    GET  {base}/status/{task_id}  → {"data": {"task_id", "status", "output": {"image_url"}}}
    callback                      {"task_id", "status", "output": {"image_url"}}

The dialect is documented only in part, so responses are parsed in every spelling seen. The callback URL is sent in one
field, `callback_url`, spelt like the other fields; a strict service would refuse three spellings of it. A service that
expects another name needs `callback_field`; one that ignores the field is polled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from broker.catalog import Catalog, Wire
from broker.errors import NotSent, ProviderError
from broker.net.api_client import ApiClient, HttpResponse
from broker.orders import Order
from broker.providers import parsing, responses
from broker.providers.base import DEFAULT_KEY_ID, STATUS_TIMEOUT_SECONDS, ProviderContext
from broker.providers.legacy.errors import LEGACY_ERRORS
from broker.providers.legacy.settings import LegacySettings
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse
from broker.reports import Failed, Finished, Pending, Report

CALLBACK_PATH: Final = "/api/webhook/nano-banana"
DIALECT: Final = "legacy"
"""Name of the catalog, whatever the adapter is called."""


@dataclass(kw_only=True, eq=False)
class Legacy:
    """One account at a service of this dialect. It has no upload: references need a public URL."""

    name: str = "legacy"
    key_id: str = DEFAULT_KEY_ID
    callback_path: str = CALLBACK_PATH
    base_url: str
    """Ends in `/nano-banana`, without a trailing slash."""
    api_key: str = field(repr=False)
    client: ApiClient
    catalog: Catalog
    now: Callable[[], float]
    callback_field: str = "callback_url"
    creates_per_10s: int = 20
    concurrency: int = 20

    def supports(self, model: str) -> bool:
        return self.catalog.serves(DIALECT, model)

    def build_request(self, order: Order, callback_url: str | None) -> dict[str, Any]:
        """Return the generate request; see `Provider.build_request`."""
        wire = self.catalog.wire(DIALECT, order.params.model, order.mode) or Wire()
        references = [reference.url or f"upload:{reference.name}" for reference in order.references]
        return {
            "method": "POST",
            "url": self._url("/generate"),
            "json": self._create(wire, order, references, self._redact(callback_url) if callback_url else None),
            "price": self.catalog.price(DIALECT, order.params.model, order.mode, order.params.resolution),
            "unit": self.catalog.unit(DIALECT),
        }

    def ignored(self, order: Order) -> tuple[str, ...]:
        return self.catalog.ignored(DIALECT, order)

    # -- ordering

    async def upload_references(self, order: Order) -> Order | Failed:
        return order if all(reference.url for reference in order.references) else _references_unreachable(self.name)

    async def submit(self, order: Order, callback_url: str | None) -> Report:
        wire = self.catalog.wire(DIALECT, order.params.model, order.mode)
        if wire is None:
            return responses.model_not_served(self.name, order)
        references = [reference.url for reference in order.references if reference.url]
        if len(references) < len(order.references):
            return _references_unreachable(self.name)
        try:
            body = self._create(wire, order, references, callback_url)
            http = await self.client.request("POST", self._url("/generate"), headers=self._headers(), json=body)
        except NotSent as error:
            return responses.order_not_sent(error, self._redact)
        return self._ordered(self._parse(http))

    def _ordered(self, response: ProviderResponse) -> Report:
        """Return the report in a response to generate. Raises `ProviderError` if the outcome is unknown.

        Some services respond with a job, some with the image. A refusal precedes an id here: `id` in an error may be
        that of the request.
        """
        if response.proves_refusal:
            return response.to_refusal(self._redact)
        parsed = response.parsed
        # without a state, a `url` beside an id may be a status page
        report = self._report(parsed, parsed.job_id) if parsed.state or not parsed.job_id else None
        if response.is_success and (report or parsed.job_id):
            return report or Pending(job_id=parsed.job_id)
        raise self._error("generate", response)

    # -- results

    async def check(self, job_id: str) -> Report:
        """Poll a job. An unknown state counts as running."""
        url = self._url(f"/status/{quote(job_id, safe='')}")
        response = self._parse(
            await self.client.request("GET", url, headers=self._headers(), timeout=STATUS_TIMEOUT_SECONDS)
        )
        if response.body is None or not response.is_success:
            raise self._error("status", response)
        if response.parsed.state == "done":
            return Finished(outputs=response.parsed.outputs, job_id=job_id, cost=response.parsed.cost)
        return self._report(response.parsed, job_id) or _running(response.parsed, job_id)

    def parse_callback(self, body: Any) -> Report:
        parsed = ParsedResponse.from_body(body, id_fields=parsing.ANY_IDS)
        if report := self._report(parsed, parsed.job_id):
            return report
        return (
            _running(parsed, parsed.job_id) if parsed.state == "running" else Pending(job_id=parsed.job_id, check_in=0)
        )

    def job_ids(self, body: Any) -> tuple[str, ...]:
        return parsing.ids_in(body)

    def _report(self, parsed: ParsedResponse, job_id: str | None) -> Report | None:
        """Return the end of a job: a failure, or a result without a state that contradicts it; None if it runs."""
        if parsed.state == "failed":
            return responses.job_failed(parsed, job_id, LEGACY_ERRORS, self._redact)
        if parsed.outputs and parsed.state in {"done", None}:
            return Finished(outputs=parsed.outputs, job_id=job_id, cost=parsed.cost, ended_at=parsed.ended_at)
        return None

    # -- account and links

    async def cancel(self, job_id: str) -> bool:
        return False

    async def refresh_url(self, url: str) -> str | None:
        return None

    async def balance(self) -> float | None:
        return None

    # -- requests

    def _create(self, wire: Wire, order: Order, references: list[str], callback_url: str | None) -> dict[str, Any]:
        extra = {"model": wire.model, self.callback_field: callback_url}
        return wire.spell(order, references) | {name: value for name, value in extra.items() if value}

    def _url(self, path: str) -> str:
        return self.base_url.rstrip("/") + path

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def _redact(self, words: str) -> str:
        return parsing.redact(words, (self.api_key,))

    def _parse(self, http: HttpResponse) -> ProviderResponse:
        return ProviderResponse.from_http(http, self.now(), LEGACY_ERRORS, id_fields=parsing.ANY_IDS)

    def _error(self, verb: str, response: ProviderResponse) -> ProviderError:
        return response.to_error(f"{self.name}: {verb}", self._redact)


def open_legacy(context: ProviderContext) -> Legacy:
    """Return the adapter for the configured account."""
    settings: LegacySettings = context.settings
    if settings.api_key is None or settings.older_dialect_url is None:
        raise ValueError("the upstream is not configured for this dialect")
    return Legacy(
        name=context.name,
        key_id=context.key_id,
        base_url=settings.older_dialect_url,
        api_key=settings.api_key.get_secret_value(),
        client=context.client,
        catalog=context.catalog,
        creates_per_10s=settings.creates_per_10s or context.creates_per_10s,
        concurrency=context.concurrency,
        now=context.now,
    )


def _running(parsed: ParsedResponse, job_id: str | None) -> Pending:
    return Pending(job_id=job_id, stage=parsed.stage, percent=parsed.percent)


def _references_unreachable(name: str) -> Failed:
    message = f"{name} fetches reference images itself: give the broker a public URL"
    return Failed(code="provider_rejected", message=message, retryable=False, billed="no")
