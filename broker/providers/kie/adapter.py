"""The adapter for kie.ai and relays with the same API, the sandbox server included.

Rules cited as "kie.ai: …" are from docs.kie.ai, pages Market (one per model), Get Task Detail, Webhook Verification,
Download URL, Get Account Credits, File Upload API and Getting Started; others were seen in public integrations.

A refusal arrives as an HTTP status or, with HTTP 200, as the body's `code`; both are read, the code first. A response
with a job id is an accepted order whatever code accompanies it: the id is the only way to find a paid image, and
polling it is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from broker.catalog import Catalog, Wire
from broker.errors import NotSent, ProviderError
from broker.net.api_client import ApiClient
from broker.orders import Order
from broker.providers import parsing, responses
from broker.providers.base import DEFAULT_KEY_ID, ProviderContext
from broker.providers.kie.account import KieAccount
from broker.providers.kie.errors import KIE_ERRORS
from broker.providers.kie.settings import KieSettings
from broker.providers.kie.uploads import ReferenceUploader
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse
from broker.reports import Failed, Finished, Pending, Report

CALLBACK_PATH: Final = "/api/webhook/nano-banana"
DIALECT: Final = "kie"
"""Name of the catalog, whatever the adapter is called."""

ENDED: Final = frozenset({408, 501, 531})
"""Envelope codes of Get Task Detail about a job that ended: no result in time, failed, refunded."""
ENDED_IN_CALLBACK: Final = ENDED | {400, 413, 422, 451, 500}
"""kie.ai calls back only when a job has ended; these codes give the outcome (400: content refused)."""


@dataclass(kw_only=True, eq=False)
class Kie:
    """One account at kie.ai."""

    name: str = "kie"
    key_id: str = DEFAULT_KEY_ID
    callback_path: str = CALLBACK_PATH
    base_url: str
    """Without a trailing slash, like `upload_url`."""
    upload_url: str
    api_key: str = field(repr=False)
    client: ApiClient
    catalog: Catalog
    now: Callable[[], float]
    always_upload: bool
    """Upload references to kie.ai's file host even if they have a public URL."""
    upload_retry_seconds: float = 0.5
    """Pause before an upload is retried; doubled each time."""
    creates_per_10s: int = 20
    concurrency: int = 100

    def __post_init__(self) -> None:
        self._account = KieAccount(
            name=self.name, base_url=self.base_url, api_key=self.api_key, client=self.client, now=self.now
        )

    @property
    def _uploader(self) -> ReferenceUploader:
        return ReferenceUploader(
            account=self._account,
            upload_url=self.upload_url,
            always_upload=self.always_upload,
            retry_seconds=self.upload_retry_seconds,
        )

    def supports(self, model: str) -> bool:
        return self.catalog.serves(DIALECT, model)

    def build_request(self, order: Order, callback_url: str | None) -> dict[str, Any]:
        """Return the createTask request; see `Provider.build_request`."""
        references = [
            self._uploader.public_url(reference) or f"upload:{reference.name}" for reference in order.references
        ]
        callback = self._account.redact(callback_url) if callback_url else None
        return {
            "method": "POST",
            "url": self._account.url("/api/v1/jobs/createTask"),
            "json": _create(
                self.catalog.wire(DIALECT, order.params.model, order.mode) or Wire(), order, references, callback
            ),
            "price": self.catalog.price(DIALECT, order.params.model, order.mode, order.params.resolution),
            "unit": self.catalog.unit(DIALECT),
        }

    def ignored(self, order: Order) -> tuple[str, ...]:
        return self.catalog.ignored(DIALECT, order)

    # -- ordering

    async def submit(self, order: Order, callback_url: str | None) -> Report:
        """Upload references not yet uploaded, then call createTask once (kie.ai: Market)."""
        wire = self.catalog.wire(DIALECT, order.params.model, order.mode)
        if wire is None:
            return responses.model_not_served(self.name, order)
        references = await self._uploader.urls_of(order)
        if isinstance(references, Failed):
            return references
        try:
            http = await self._account.post_json(
                "/api/v1/jobs/createTask", _create(wire, order, references, callback_url)
            )
        except NotSent as error:
            return responses.order_not_sent(error, self._account.redact)
        return self._ordered(self._account.parse(http))

    def _ordered(self, response: ProviderResponse) -> Report:
        """Return the report in a response to createTask. Raises `ProviderError` if the outcome is unknown.

        kie.ai: 429 created and charged nothing. Code 500, HTTP 5xx and 408 may follow an accepted order.
        """
        if response.parsed.job_id:
            return Pending(job_id=response.parsed.job_id)
        if response.proves_refusal:
            return response.to_refusal(self._account.redact)
        raise self._account.error("createTask", response)

    # -- references

    async def upload_references(self, order: Order) -> Order | Failed:
        urls = await self._uploader.urls_of(order)
        if isinstance(urls, Failed):
            return urls
        uploaded = zip(order.references, urls, strict=True)
        references = tuple(replace(reference, url=url, is_uploaded=True) for reference, url in uploaded)
        return replace(order, references=references)

    # -- results

    async def check(self, job_id: str) -> Report:
        """Poll a job (kie.ai: Get Task Detail). It may be unknown there (404, 422) for a while after the order.

        Errors are never permanent: the job may exist and be paid. The deadline ends the polling.
        """
        http = await self._account.get_status("/api/v1/jobs/recordInfo", {"taskId": job_id})
        response = self._account.parse(http)
        parsed = response.parsed
        if response.body is None:
            parsed = ParsedResponse.from_body(parsing.salvage_record(http.body.decode("utf-8", "replace")))
        if parsed.ids and job_id not in parsed.ids:
            raise ProviderError(f"{self.name}: recordInfo answered about another job")
        match parsed.state:
            case "done" if parsed.ids:
                return Finished(outputs=parsed.outputs, job_id=job_id, cost=parsed.cost)
            case "failed" if parsed.ids:
                return responses.job_failed(parsed, job_id, KIE_ERRORS, self._account.redact)
            case None if parsed.code in ENDED:
                return responses.job_failed(parsed, job_id, KIE_ERRORS, self._account.redact)
            case "running" | "unknown" | None if parsed.ids and response.is_success:
                return Pending(job_id=job_id, stage=parsed.stage, percent=parsed.percent)
        raise self._account.error("recordInfo", response)

    def parse_callback(self, body: Any) -> Report:
        """Parse kie.ai's record with its code, the older `{"task_id", "status", "output"}`, or that of a sibling.

        A contradiction between code and state, or an unreadable body, means: poll.
        """
        parsed = ParsedResponse.from_body(body)
        is_success = parsed.code is None or parsed.code in parsing.SUCCESS_CODES
        match parsed.state:
            case "done" | None if is_success and parsed.outputs:
                return Finished(
                    outputs=parsed.outputs, job_id=parsed.job_id, cost=parsed.cost, ended_at=parsed.ended_at
                )
            case "failed" if parsed.code is None or not is_success:
                return responses.job_failed(parsed, parsed.job_id, KIE_ERRORS, self._account.redact)
            case None if parsed.code in ENDED_IN_CALLBACK and not parsed.outputs:
                return responses.job_failed(parsed, parsed.job_id, KIE_ERRORS, self._account.redact)
            case "running" if is_success:
                return Pending(job_id=parsed.job_id, stage=parsed.stage, percent=parsed.percent)
        return Pending(job_id=parsed.job_id, check_in=0)

    def job_ids(self, body: Any) -> tuple[str, ...]:
        return parsing.ids_in(body)

    # -- account and links

    async def cancel(self, job_id: str) -> bool:
        """Return False: kie.ai documents no cancellation."""
        return False

    async def refresh_url(self, url: str) -> str | None:
        """Request a link valid for 20 minutes (kie.ai: Download URL); 422 means that the URL is foreign."""
        response = self._account.parse(await self._account.post_json("/api/v1/common/download-url", {"url": url}))
        if response.is_success and (link := parsing.first_link([parsing.mapping(response.body).get("data")])):
            return link
        if response.code in {404, 422}:
            return None
        raise self._account.error("download-url", response, permanent=True)

    async def balance(self) -> float | None:
        """Return the credits (kie.ai: Get Account Credits); documented as an integer, in practice a fraction."""
        response = self._account.parse(await self._account.get_status("/api/v1/chat/credit", {}))
        left = parsing.amount(parsing.mapping(response.body).get("data"))
        if response.is_success and left is not None:
            return left
        raise self._account.error("credit", response, permanent=True)


def open_kie(context: ProviderContext) -> Kie:
    """Return the adapter for the configured account; without a key, for the sandbox server."""
    settings: KieSettings = context.settings
    return Kie(
        name=context.name,
        key_id=context.key_id,
        base_url=settings.base_url,
        upload_url=settings.upload_url,
        api_key=settings.api_key.get_secret_value() if settings.api_key else "sandbox-needs-no-key",
        client=context.client,
        catalog=context.catalog,
        always_upload=settings.upload_references,
        creates_per_10s=settings.creates_per_10s or context.creates_per_10s,
        concurrency=context.concurrency,
        now=context.now,
    )


def _create(wire: Wire, order: Order, references: Sequence[str], callback_url: str | None) -> dict[str, Any]:
    """Return the body of createTask. kie.ai sends a callback only if `callBackUrl`, in this spelling, is present."""
    body: dict[str, Any] = {"model": wire.model, "input": wire.spell(order, references)}
    return body | ({"callBackUrl": callback_url} if callback_url else {})
