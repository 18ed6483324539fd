"""The base of adapters for APIs that accept an order as JSON with a key in a header, and answer with a job.

A subclass names its catalog, paths and error codes, writes the body of an order, and decides what a response proves.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Final

from broker.catalog import Wire
from broker.errors import FieldError, NotSent, ProviderError
from broker.net.documents import parse_off_loop
from broker.net.http_request import FilePart
from broker.orders import Order, Reference
from broker.providers import parsing
from broker.providers.base import ProviderContext, ResultSink
from broker.providers.error_codes import ErrorTable
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse, Reports
from broker.reports import Failed, Pending, Report

STATUS_TIMEOUT_SECONDS: Final = 30.0
"""For GET requests. They can be repeated, so a provider that hangs must not occupy a slot for long."""
_EXTENSIONS: Final = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}


class JobApi:
    """One account at such an API; see `Provider` for what each method must keep."""

    catalog_name: ClassVar[str]
    """Name of its catalog, whatever the adapter is called."""
    order_path: ClassVar[str] = ""
    """Path of orders, below the base URL; empty where `order_url` is defined instead."""
    auth_scheme: ClassVar[str] = "Bearer"
    errors: ClassVar[ErrorTable]
    id_fields: ClassVar[Sequence[str]] = parsing.TASK_IDS
    """Names of a job's id in a response."""
    holds_submit: bool = False
    keeps_history: bool = False
    callback_path: str = ""
    """`/api/webhook/<name>` if empty."""

    def __init__(self, context: ProviderContext, *, base_url: str) -> None:
        self.name = context.name
        self.api_name = self.catalog_name
        self.key_id = context.key_id
        self.base_url = base_url.rstrip("/")
        self.callback_path = self.callback_path or f"/api/webhook/{context.name}"
        self.creates_per_10s = context.creates_per_10s
        self.concurrency = context.concurrency
        self.context = context
        self._api_key = context.api_key.get_secret_value() if context.api_key else "sandbox-needs-no-key"
        self.reports = Reports(name=context.name, errors=self.errors, secret=self._api_key)

    # -- for subclasses to define

    def order_url(self, model: str | None, callback_url: str | None) -> str:
        """Return the URL of an order. model: as the catalog spells it."""
        return self.base_url + self.order_path

    def order_body(self, model: str | None, fields: dict[str, Any], callback_url: str | None) -> dict[str, Any]:
        """Return the body of an order; fields that are None are not sent. model, fields: as the catalog spells them."""
        raise NotImplementedError

    def read_order_response(self, response: ProviderResponse) -> Report:
        """Return the report in the response to an order. Raises `ProviderError` if the outcome is unknown."""
        raise NotImplementedError

    def public_url(self, reference: Reference) -> str | None:
        """Return a URL that the provider can fetch, or None if the reference must be uploaded."""
        return reference.url

    async def upload_reference(self, reference: Reference) -> str | Failed:
        """Upload a reference without a public URL, and return its URL."""
        message = f"{self.name} fetches reference images itself: give the broker a public URL"
        return Failed(
            code="provider_rejected", message=message, retryable=False, billed="no", sent=False, cannot_serve=True
        )

    # -- the provider's contract

    def supports(self, model: str) -> bool:
        return self.context.catalog.serves(self.catalog_name, model)

    def find_obstacle(self, order: Order, references: int) -> tuple[str, FieldError] | None:
        return self.context.catalog.find_obstacle(self.catalog_name, order, references)

    def expects_callback(self, order: Order) -> bool:
        return not self.holds_submit

    def ignored(self, order: Order) -> tuple[str, ...]:
        return self.context.catalog.ignored(self.catalog_name, order)

    def build_request(self, order: Order, callback_url: str | None) -> dict[str, Any]:
        catalog, params = self.context.catalog, order.params
        wire = catalog.wire(self.catalog_name, params.model, order.mode) or Wire()
        shown_url = self.reports.redact(callback_url) if callback_url else None
        references = [self.public_url(reference) or f"upload:{reference.name}" for reference in order.references]
        return {
            "method": "POST",
            "url": self.order_url(wire.model, shown_url),
            "json": self._body(wire, order, references, shown_url),
            "price": self.price(order),
            "unit": catalog.terms(self.catalog_name).unit,
        }

    def price(self, order: Order) -> float | None:
        params = order.params
        return self.context.catalog.price(self.catalog_name, params.model, order.mode, params.resolution)

    async def upload_references(self, order: Order) -> Order | Failed:
        urls = await self.resolve_references(order)
        if isinstance(urls, Failed):
            return urls
        pairs = zip(order.references, urls, strict=True)
        return replace(order, references=tuple(replace(one, url=url, is_uploaded=True) for one, url in pairs))

    async def submit(self, order: Order, callback_url: str | None, sink: ResultSink) -> Report:
        wire = self.context.catalog.wire(self.catalog_name, order.params.model, order.mode)
        if wire is None:
            return self.not_served(order)
        references = await self.resolve_references(order)
        if isinstance(references, Failed):
            return references
        try:
            body = self._body(wire, order, references, callback_url)
            response = await self.request("POST", self.order_url(wire.model, callback_url), json=body)
        except NotSent as error:
            return self.reports.not_sent(error)
        return self.read_order_response(response)

    def job_ids(self, body: Any) -> tuple[str, ...]:
        return parsing.ids_in(body)

    async def cancel(self, job_id: str) -> bool:
        return False

    async def refresh_url(self, url: str) -> str | None:
        return None

    async def balance(self) -> float | None:
        return None

    # -- requests and responses

    def not_served(self, order: Order) -> Failed:
        message = f"{self.name} does not serve {order.params.model} ({order.mode})"
        return Failed(
            code="provider_rejected", message=message, retryable=False, billed="no", sent=False, cannot_serve=True
        )

    def _body(self, wire: Wire, order: Order, references: Sequence[str], callback_url: str | None) -> dict[str, Any]:
        body = self.order_body(wire.model, wire.spell(order, references), callback_url)
        return {name: value for name, value in body.items() if value is not None}

    async def resolve_references(self, order: Order) -> list[str] | Failed:
        """Return a URL for each reference; those that the provider cannot fetch are uploaded."""
        urls: list[str] = []
        for reference in order.references:
            url = self.public_url(reference) or await self.upload_reference(reference)
            if isinstance(url, Failed):
                return url
            urls.append(url)
        return urls

    async def upload_file(
        self, url: str, reference: Reference, *places: str, field: str = "file", form: Mapping[str, str] | None = None
    ) -> str | Failed:
        """Upload a reference as a form; return the URL at the first of several places (dotted) in the response.

        A failure costs nothing: nothing is ordered yet. form: further fields, in which `{name}` is the file's name.
        """
        name = new_file_name(reference)
        file = FilePart(name=field, filename=name, media_type=reference.media_type, read=reference.read)
        fields = {key: value.format(name=name) for key, value in (form or {}).items()}
        try:
            response = await self.request("POST", url, form=fields, files=[file])
        except ProviderError as error:
            return self.reports.not_sent(error)
        found = parsing.links(list(parsing.values_at((response.body,), *places)))
        if response.is_success and found:
            return found[0]
        if response.is_permanent:
            return self.reports.refusal(response)
        return self.reports.not_sent(self.reports.error("upload", response))

    async def request(self, method: str, path: str, **options: Any) -> ProviderResponse:
        """Send one request with the key. path: below the base URL, or a URL. options: of `ApiClient.request`."""
        url = path if path.startswith("http") else self.base_url + path
        headers = {"Authorization": f"{self.auth_scheme} {self._api_key}"}
        options = {"timeout": STATUS_TIMEOUT_SECONDS} | options if method == "GET" else options
        response = await self.context.client.request(method, url, headers=headers, **options)
        parse = partial(ProviderResponse.from_http, response, self.context.now(), id_fields=self.id_fields)
        return await parse_off_loop(len(response.body), parse)


def running(parsed: ParsedResponse, job_id: str | None) -> Pending:
    """Return the report of a job that has not ended."""
    return Pending(job_id=job_id, stage=parsed.stage, percent=parsed.percent)


def new_file_name(reference: Reference) -> str:
    """Return a name for an upload; a new one each time, because a reused name may go on serving the old bytes."""
    return f"{reference.sha256[:16]}-{secrets.token_hex(8)}.{_EXTENSIONS.get(reference.media_type, 'bin')}"
