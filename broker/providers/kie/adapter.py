"""kie.ai, and whatever speaks its dialect (the sandbox does).

Rules cited as "kie.ai: …" are from docs.kie.ai, pages Market (one per model), Get Task Detail, Webhook Verification,
Download URL, Get Account Credits, File Upload API and Getting Started; others were seen in public integrations.

An order can be refused through the HTTP status or, with HTTP 200, through the body's `code`; both are read, the code
first. An answer with a job id is an accepted order whatever code stands beside it: the id is all we ever get to find a
paid image by, and asking about it is free.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

from broker.catalog import Catalog, Wire
from broker.errors import NotSent, ProviderError
from broker.net.api_client import ApiClient, FilePart, HttpResponse
from broker.orders import Order, Reference
from broker.providers import parsing, responses
from broker.providers.base import DEFAULT_KEY_ID, STATUS_TIMEOUT_SECONDS, ProviderContext
from broker.providers.kie.settings import KieSettings
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse
from broker.reports import Failed, Finished, Pending, Report

CALLBACK_PATH: Final = "/api/webhook/nano-banana"
DIALECT: Final = "kie"
"""Our name in the catalog, whatever the instance is called."""

UPLOAD_FOLDER: Final = "references"
EXTENSIONS: Final = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}

ENDED: Final = frozenset({408, 501, 531})
"""Envelope codes of Get Task Detail that are about the job, which is over: no result in time, failed, refunded."""
ENDED_IN_CALLBACK: Final = ENDED | {400, 413, 422, 451, 500}
"""kie.ai calls back only when a job is over; these codes say how (400: content refused)."""


@dataclass(kw_only=True, eq=False)
class Kie:
    """One account at kie.ai.

    base_url, upload_url: without a slash at the end. always_upload: hand references over through kie's own file
    host even where they have a public address. upload_pause: seconds before an upload is tried again, then doubled.
    """

    name: str = "kie"
    key_id: str = DEFAULT_KEY_ID
    callback_path: str = CALLBACK_PATH
    base_url: str
    upload_url: str
    api_key: str = field(repr=False)
    client: ApiClient
    catalog: Catalog
    now: Callable[[], float]
    always_upload: bool
    upload_pause: float = 0.5
    creates_per_10s: int = 20
    concurrency: int = 100

    def supports(self, model: str) -> bool:
        return self.catalog.serves(DIALECT, model)

    def build_request(self, order: Order, callback_url: str | None) -> dict[str, Any]:
        """References that would be uploaded first appear as `upload:<name>`; the callback's query is cut off."""
        references = [self._public_url(reference) or f"upload:{reference.name}" for reference in order.references]
        callback = self._redact(callback_url) if callback_url else None
        return {
            "method": "POST",
            "url": self._url("/api/v1/jobs/createTask"),
            "json": _create(self.catalog.wire(DIALECT, order.model, order.mode) or Wire(), order, references, callback),
            "price": self.catalog.price(DIALECT, order.model, order.mode, order.resolution),
            "unit": self.catalog.unit(DIALECT),
        }

    def ignored(self, order: Order) -> tuple[str, ...]:
        return self.catalog.ignored(DIALECT, order)

    # -- ordering

    async def submit(self, order: Order, callback_url: str | None) -> Report:
        """Upload references that were not handed over; then createTask, once (kie.ai: Market)."""
        wire = self.catalog.wire(DIALECT, order.model, order.mode)
        if wire is None:
            return responses.not_served(self.name, order)
        references = await self._references(order)
        if isinstance(references, Failed):
            return references
        try:
            answer = await self._post("/api/v1/jobs/createTask", _create(wire, order, references, callback_url))
        except NotSent as error:
            return responses.unsent(error, self._redact)
        return self._ordered(self._reply(answer))

    def _ordered(self, reply: ProviderResponse) -> Report:
        """What an answer to createTask means; ProviderError where it leaves the outcome open.

        kie.ai: 429 created and charged nothing. Code 500, HTTP 5xx and 408 may come after the order was taken.
        """
        if reply.said.job_id:
            return Pending(job_id=reply.said.job_id)
        if reply.proves_refusal:
            return reply.refusal(self._redact)
        raise self._trouble("createTask", reply)

    # -- references

    async def upload_references(self, order: Order) -> Order | Failed:
        urls = await self._references(order)
        if isinstance(urls, Failed):
            return urls
        handed_over = zip(order.references, urls, strict=True)
        references = tuple(replace(reference, url=url, handed_over=True) for reference, url in handed_over)
        return replace(order, references=references)

    def _public_url(self, reference: Reference) -> str | None:
        return None if self.always_upload and not reference.handed_over else reference.url

    async def _references(self, order: Order) -> list[str] | Failed:
        urls: list[str] = []
        for reference in order.references:
            url = self._public_url(reference) or await self._uploaded(reference)
            if isinstance(url, Failed):
                return url
            urls.append(url)
        return urls

    async def _uploaded(self, reference: Reference) -> str | Failed:
        """The address of a reference on kie's file host. Nothing is ordered yet, so trouble costs nothing."""
        tries = AsyncRetrying(
            stop=stop_after_attempt(3),
            wait=wait_exponential(multiplier=self.upload_pause, max=4),
            retry=retry_if_exception(lambda error: isinstance(error, ProviderError) and not error.permanent),
            reraise=True,
        )
        try:
            return await tries(self._upload, reference)
        except ProviderError as error:
            return responses.unsent(error, self._redact)

    async def _upload(self, reference: Reference) -> str | Failed:
        """kie.ai: File Stream Upload. A name used before may go on serving the old bytes, so each is new."""
        name = _file_name(reference)
        file = FilePart(name="file", filename=name, media_type=reference.media_type, read=reference.read)
        answer = await self.client.request(
            "POST",
            f"{self.upload_url.rstrip('/')}/api/file-stream-upload",
            headers=self._headers(),
            form={"uploadPath": UPLOAD_FOLDER, "fileName": name},
            files=[file],
        )
        reply = self._reply(answer)
        data = parsing.record_of(parsing.mapping(reply.body))
        if url := parsing.first_link([data.get("downloadUrl"), data.get("fileUrl")]):
            return url
        if reply.proves_refusal and reply.code not in responses.WAITS:
            return reply.refusal(self._redact)
        raise self._trouble("file-stream-upload", reply)

    # -- listening

    async def check(self, job_id: str) -> Report:
        """kie.ai: Get Task Detail. A job may be unknown there (404, 422) for a while after it was ordered.

        Never permanent: whatever is wrong now, the job may be there and paid. The deadline ends the asking.
        """
        answer = await self._get("/api/v1/jobs/recordInfo", {"taskId": job_id})
        reply = self._reply(answer)
        said = reply.said
        if reply.body is None:
            said = ParsedResponse.from_body(parsing.salvaged(answer.body.decode("utf-8", "replace")))
        if said.ids and job_id not in said.ids:
            raise ProviderError(f"{self.name}: recordInfo answered about another job")
        match said.state:
            case "done" if said.ids:
                return Finished(outputs=said.outputs, job_id=job_id, cost=said.cost)
            case "failed" if said.ids:
                return responses.failed(said, job_id, self._redact)
            case None if said.code in ENDED:
                return responses.failed(said, job_id, self._redact)
            case "running" | "unknown" | None if said.ids and reply.fine:
                return Pending(job_id=job_id, stage=said.word, percent=said.percent)
        raise self._trouble("recordInfo", reply)

    def parse_callback(self, body: Any) -> Report:
        """kie.ai: Callbacks of the Market models (the record of Get Task Detail beside a code), the older
        `{"task_id", "status", "output"}`, and the bodies of sibling products.

        Where code and state contradict each other, or nothing can be read, the provider is to be asked.
        """
        said = ParsedResponse.from_body(body)
        fine = said.code is None or said.code in parsing.FINE
        match said.state:
            case "done" | None if fine and said.outputs:
                return Finished(outputs=said.outputs, job_id=said.job_id, cost=said.cost, ended_at=said.ended_at)
            case "failed" if said.code is None or not fine:
                return responses.failed(said, said.job_id, self._redact)
            case None if said.code in ENDED_IN_CALLBACK and not said.outputs:
                return responses.failed(said, said.job_id, self._redact)
            case "running" if fine:
                return Pending(job_id=said.job_id, stage=said.word, percent=said.percent)
        return Pending(job_id=said.job_id, check_in=0)

    def job_ids(self, body: Any) -> tuple[str, ...]:
        return parsing.ids_in(body)

    # -- the rest

    async def cancel(self, job_id: str) -> bool:
        """kie.ai documents no way to cancel a job."""
        return False

    async def refresh_url(self, url: str) -> str | None:
        """kie.ai: Download URL. A link good for 20 minutes; 422 for what is not theirs."""
        reply = self._reply(await self._post("/api/v1/common/download-url", {"url": url}))
        if reply.fine and (link := parsing.first_link([parsing.mapping(reply.body).get("data")])):
            return link
        if reply.code in {404, 422}:
            return None
        raise self._trouble("download-url", reply, permanent=True)

    async def balance(self) -> float | None:
        """kie.ai: Get Account Credits. Documented as a whole number, in practice a fraction."""
        reply = self._reply(await self._get("/api/v1/chat/credit", {}))
        left = parsing.amount(parsing.mapping(reply.body).get("data"))
        if reply.fine and left is not None:
            return left
        raise self._trouble("credit", reply, permanent=True)

    # -- talking

    def _url(self, path: str) -> str:
        return self.base_url.rstrip("/") + path

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    async def _post(self, path: str, body: Mapping[str, Any]) -> HttpResponse:
        return await self.client.request("POST", self._url(path), headers=self._headers(), json=body)

    async def _get(self, path: str, params: Mapping[str, str]) -> HttpResponse:
        return await self.client.request(
            "GET", self._url(path), headers=self._headers(), params=params, timeout=STATUS_TIMEOUT_SECONDS
        )

    def _redact(self, words: str) -> str:
        return parsing.redact(words, (self.api_key,))

    def _reply(self, answer: HttpResponse) -> ProviderResponse:
        return ProviderResponse.from_http(answer, self.now())

    def _trouble(self, verb: str, reply: ProviderResponse, *, permanent: bool = False) -> ProviderError:
        return reply.trouble(f"{self.name}: {verb}", self._redact, permanent=permanent)


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
    """The body of createTask. kie.ai: `callBackUrl`, spelt so; left out, no callback is ever sent."""
    body: dict[str, Any] = {"model": wire.model, "input": wire.spell(order, references)}
    return body | ({"callBackUrl": callback_url} if callback_url else {})


def _file_name(reference: Reference) -> str:
    extension = EXTENSIONS.get(reference.media_type, "bin")
    return f"{reference.sha256[:16]}-{secrets.token_hex(8)}.{extension}"
