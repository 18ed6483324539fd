"""The looser dialect of `…/nano-banana` addresses: resellers such as Unifically, and gateways people wrote themselves.

    POST {base}/generate          {"prompt", "aspect_ratio", "image_urls", "callback_url"} → {"data": {"task_id", …}}
    GET  {base}/status/{task_id}  → {"data": {"task_id", "status", "output": {"image_url"}}}
    callback                      {"task_id", "status", "output": {"image_url"}}

Nobody documents all of it, so answers are read in every spelling seen. The callback's address goes into one field only,
`callback_url`: it is spelt like the other fields of this dialect, and a strict service would refuse a request with
three spellings of it. A service that wants `callBackUrl` or `webhook_url` is set up through `callback_field`; one that
knows none of them ignores it, and the job is found by asking.
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
from broker.providers.legacy.settings import LegacySettings
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse
from broker.reports import Failed, Finished, Pending, Report

CALLBACK_PATH: Final = "/api/webhook/nano-banana"
DIALECT: Final = "legacy"
"""Our name in the catalog, whatever the instance is called."""


@dataclass(kw_only=True, eq=False)
class Legacy:
    """One account at a service of this dialect. Its limits are documented nowhere: kie.ai's are a fair guess.

    base_url: with `/nano-banana`, without a slash at the end. There is no upload: references need a public address.
    """

    name: str = "legacy"
    key_id: str = DEFAULT_KEY_ID
    callback_path: str = CALLBACK_PATH
    base_url: str
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
        """References without a public address appear as `upload:<name>`; the callback's query is cut off."""
        wire = self.catalog.wire(DIALECT, order.model, order.mode) or Wire()
        references = [reference.url or f"upload:{reference.name}" for reference in order.references]
        return {
            "method": "POST",
            "url": self._url("/generate"),
            "json": self._create(wire, order, references, self._redact(callback_url) if callback_url else None),
            "price": self.catalog.price(DIALECT, order.model, order.mode, order.resolution),
            "unit": self.catalog.unit(DIALECT),
        }

    def ignored(self, order: Order) -> tuple[str, ...]:
        return self.catalog.ignored(DIALECT, order)

    # -- ordering

    async def upload_references(self, order: Order) -> Order | Failed:
        return order if all(reference.url for reference in order.references) else self._unreachable()

    async def submit(self, order: Order, callback_url: str | None) -> Report:
        wire = self.catalog.wire(DIALECT, order.model, order.mode)
        if wire is None:
            return responses.not_served(self.name, order)
        references = [reference.url for reference in order.references if reference.url]
        if len(references) < len(order.references):
            return self._unreachable()
        try:
            body = self._create(wire, order, references, callback_url)
            answer = await self.client.request("POST", self._url("/generate"), headers=self._headers(), json=body)
        except NotSent as error:
            return responses.unsent(error, self._redact)
        return self._ordered(self._reply(answer))

    def _ordered(self, reply: ProviderResponse) -> Report:
        """Some services answer with a job, some with the image; ProviderError where the outcome stays open.

        Here a refusal decides before an id does: `id` beside an error is as likely the request's as a job's.
        """
        if reply.proves_refusal:
            return reply.refusal(self._redact)
        said = reply.said
        report = (
            self._report(said, said.job_id) if said.state or not said.job_id else None
        )  # `url` may be a status page
        if reply.fine and (report or said.job_id):
            return report or Pending(job_id=said.job_id)
        raise self._trouble("generate", reply)

    def _unreachable(self) -> Failed:
        message = f"{self.name} fetches reference images itself: give the broker a public address"
        return Failed(code="provider_rejected", message=message, retryable=False, billed="no")

    # -- listening

    async def check(self, job_id: str) -> Report:
        """A state nobody knows means that the job is not finished."""
        url = self._url(f"/status/{quote(job_id, safe='')}")
        reply = self._reply(
            await self.client.request("GET", url, headers=self._headers(), timeout=STATUS_TIMEOUT_SECONDS)
        )
        if reply.body is None or not reply.fine:
            raise self._trouble("status", reply)
        if reply.said.state == "done":
            return Finished(outputs=reply.said.outputs, job_id=job_id, cost=reply.said.cost)
        return self._report(reply.said, job_id) or self._running(reply.said, job_id)

    def parse_callback(self, body: Any) -> Report:
        said = ParsedResponse.from_body(body, id_fields=parsing.ANY_IDS)
        if report := self._report(said, said.job_id):
            return report
        return self._running(said, said.job_id) if said.state == "running" else Pending(job_id=said.job_id, check_in=0)

    def job_ids(self, body: Any) -> tuple[str, ...]:
        return parsing.ids_in(body)

    @staticmethod
    def _running(said: ParsedResponse, job_id: str | None) -> Pending:
        return Pending(job_id=job_id, stage=said.word, percent=said.percent)

    def _report(self, said: ParsedResponse, job_id: str | None) -> Report | None:
        """The end of a job, if a body tells of one: a failure, or a result beside no word that speaks against it."""
        if said.state == "failed":
            return responses.failed(said, job_id, self._redact)
        if said.outputs and said.state in {"done", None}:
            return Finished(outputs=said.outputs, job_id=job_id, cost=said.cost, ended_at=said.ended_at)
        return None

    # -- the rest

    async def cancel(self, job_id: str) -> bool:
        return False

    async def refresh_url(self, url: str) -> str | None:
        return None

    async def balance(self) -> float | None:
        return None

    # -- talking

    def _create(self, wire: Wire, order: Order, references: list[str], callback_url: str | None) -> dict[str, Any]:
        extra = {"model": wire.model, self.callback_field: callback_url}
        return wire.spell(order, references) | {name: value for name, value in extra.items() if value}

    def _url(self, path: str) -> str:
        return self.base_url.rstrip("/") + path

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def _redact(self, words: str) -> str:
        return parsing.redact(words, (self.api_key,))

    def _reply(self, answer: HttpResponse) -> ProviderResponse:
        return ProviderResponse.from_http(answer, self.now(), id_fields=parsing.ANY_IDS)

    def _trouble(self, verb: str, reply: ProviderResponse) -> ProviderError:
        return reply.trouble(f"{self.name}: {verb}", self._redact)


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
