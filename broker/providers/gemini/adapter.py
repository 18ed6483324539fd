"""The adapter for Google's Gemini API and relays of its shape.

generateContent answers with the image, so a lost answer is lost money: nothing else can find the image again. A batch
of one order costs half, may take two days, and has an id.

Rules cited as "Google: …" are from ai.google.dev; others were seen in the documentation of relays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from broker.catalog import Wire
from broker.errors import NotSent
from broker.orders import Order
from broker.providers.base import ProviderContext, ResultSink
from broker.providers.gemini import batches
from broker.providers.gemini.answers import Answer, is_image, read_answer
from broker.providers.gemini.errors import ERRORS, OVERLOADED, UNBILLED_AT_GOOGLE, error_status, retry_delay
from broker.providers.gemini.requests import build_content
from broker.providers.gemini.settings import GeminiSettings
from broker.providers.held_api import HeldApi
from broker.providers.inline_requests import stream_body
from broker.providers.inline_results import read_inline_results
from broker.providers.responses import ProviderResponse
from broker.reports import Billed, Failed, Finished, Pending, Report

BATCH_SECONDS: Final = 48 * 3600.0
"""A batch that has not ended then expires (Google: Batch API)."""
BATCH_CHECK_SECONDS: Final = 60.0
BATCH_DISCOUNT: Final = 0.5
CONTENT_CODES: Final = frozenset({"safety_input", "safety_output", "no_image"})
"""Refusals of an order by the model or its filters, behind a relay."""


class Gemini(HeldApi):
    """One key of Google's API, or of a relay."""

    catalog_name = "gemini"
    errors = ERRORS
    keeps_history = True

    def __init__(self, context: ProviderContext) -> None:
        settings: GeminiSettings = context.settings
        super().__init__(context, base_url=settings.base_url)
        self._settings = settings
        self._is_google = f".{self.base_url.split('/')[2]}".endswith(".googleapis.com")

    # -- planning

    def build_request(self, order: Order, callback_url: str | None) -> dict[str, Any]:
        wire = self.find_wire(order) or Wire()
        shown_url = self.reports.redact(callback_url) if callback_url else None
        data = [f"inline:{reference.name}" for reference in order.references]
        request = {
            "method": "POST",
            "url": self.base_url + self._path(wire, order),
            "json": self._build_body(wire, order, data, shown_url),
            "price": self.price(order),
            "unit": self.context.catalog.terms(self.catalog_name).unit,
        }
        return request | ({"deadline_seconds": BATCH_SECONDS} if self._is_batch(order) else {})

    def price(self, order: Order) -> float | None:
        price = super().price(order)
        return None if price is None else price * self._discount(self._is_batch(order))

    def expects_callback(self, order: Order) -> bool:
        return self._is_batch(order)

    # -- ordering

    async def submit(self, order: Order, callback_url: str | None, sink: ResultSink) -> Report:
        wire = self.find_wire(order)
        if wire is None:
            return self.not_served(order)
        body = stream_body(lambda data: self._build_body(wire, order, data, callback_url), order.references)
        try:
            async with self.stream(
                "POST", self._path(wire, order), body=body, resolution=order.params.resolution
            ) as response:
                if self._is_batch(order):
                    return self._read_order_of_batch(await self.read_whole(response))
                if not 200 <= response.status < 300:
                    return self._read_error(await self.read_whole(response))
                document = await read_inline_results(response.chunks, sink, is_image=is_image)
        except NotSent as error:
            return self.reports.not_sent(error)
        answer = read_answer(document)
        if answer is not None:
            return self._report(answer, wire)
        response_of_error = ProviderResponse.from_body(document.body, status=response.status)
        return self._read_error(response_of_error.unwrap_error(), is_answered=True)

    def _read_order_of_batch(self, response: ProviderResponse) -> Report:
        """Return the report in the response to a batch. After a server error it may exist, and go on."""
        name = batches.read_name(response.body) if response.is_success else None
        if name is None and not response.proves_refusal:
            raise self.reports.error("batchGenerateContent", response)
        if name is None:
            return self._read_error(response)
        return Pending(job_id=name, check_in=BATCH_CHECK_SECONDS, deadline_in=BATCH_SECONDS)

    def _read_error(self, response: ProviderResponse, *, is_answered: bool = False) -> Failed:
        """Return the report of a failure. Raises `ProviderError` for an error that may come before the work ends.

        No job goes on behind an error of Google's: an overloaded model has not begun, and a failed request is not
        billed (Google: Billing). A relay may bill what failed behind it, a refusal of the content, and each 200.
        is_answered: the error came within a 200.
        """
        name = error_status(response.body)
        is_unbilled = (response.status == 503 and name == OVERLOADED) or (
            self._is_google and response.status == 500 and name == UNBILLED_AT_GOOGLE
        )
        is_failure = is_answered and response.status >= 500
        if not (response.proves_refusal or is_unbilled or is_failure):
            raise self.reports.error("generateContent", response)
        refusal = self.reports.refusal(response)
        is_free = response.proves_refusal or is_unbilled
        if not self._is_google:
            is_free = is_free and refusal.code not in CONTENT_CODES and not (is_answered and not response.is_unpaid)
        wait = refusal.retry_in if response.wait_seconds is not None else retry_delay(response.body) or refusal.retry_in
        return replace(
            refusal,
            retry_in=wait if refusal.retryable else None,
            billed="no" if is_free else "unknown",
            cannot_serve=response.status == 404,
        )

    def _report(self, answer: Answer, wire: Wire, *, job_id: str | None = None) -> Finished | Failed:
        discount = self._discount(job_id is not None)
        if answer.image is None:
            error = answer.failure
            return Failed(
                code=error.code,
                message=self.reports.redact(answer.message),
                retryable=error.retryable and answer.id is not None,  # only attempts with an id are counted
                billed=self._billed_without_image(answer),
                job_id=job_id or answer.id,
                provider_code=self.reports.redact(answer.block_reason or answer.finish_reason or "") or None,
                known=error.known,
            )
        tokens = answer.tokens if wire.token_prices else None
        return Finished(
            outputs=(answer.image,),
            job_id=job_id,
            cost=None if tokens is None else tokens.price(wire.token_prices) * discount,
            texts=answer.texts,
            turn=answer.turn,
            tokens=answer.tokens.to_counts() if answer.tokens else {},
        )

    def _billed_without_image(self, answer: Answer) -> Billed:
        """Google bills tokens, and none were made; relays may bill the request (laozhang: a refusal costs the same)."""
        if answer.tokens is None or not self._is_google:
            return "unknown"
        return "yes" if answer.tokens.image + answer.tokens.text else "no"

    # -- batches

    async def check(self, job_id: str, sink: ResultSink) -> Report:
        """Return the state of a batch (Google: Batch API). Its images are in the response."""
        name = batches.to_name(job_id)
        async with self.stream("GET", f"/v1beta/{quote(name, safe='/')}") as response:
            if not 200 <= response.status < 300:
                raise self.reports.error("batch", await self.read_whole(response))
            document = await read_inline_results(response.chunks, sink, is_image=is_image)
        batch = batches.read_batch(document, name)
        if batch is None:
            raise self.reports.error("batch", ProviderResponse.from_body(document.body, status=response.status))
        if batch.answer is not None:
            return self._report(batch.answer, self._wire_of_model(batch.model), job_id=job_id)
        if batch.failure is None:
            return Pending(job_id=job_id, stage=batch.stage, check_in=BATCH_CHECK_SECONDS)
        return replace(batch.failure, message=self.reports.redact(batch.failure.message), job_id=job_id)

    def parse_callback(self, body: Any) -> Report:
        """Return "check now": a webhook of Google's names the batch and its end, but never the result."""
        ids = self.job_ids(body)
        if batches.is_end(body) or not ids:
            return Pending(job_id=ids[0] if ids else None, check_in=0)
        return Pending(job_id=ids[0])

    def job_ids(self, body: Any) -> tuple[str, ...]:
        return batches.ids_in(body)

    async def cancel(self, job_id: str) -> bool:
        name = batches.to_name(job_id)
        response = await self.request("POST", f"/v1beta/{quote(name, safe='/')}:cancel", json={})
        if response.is_success:
            return True
        raise self.reports.error("cancel", response.unwrap_error(), can_be_permanent=True)

    # -- requests

    def auth(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        return self._settings.place_key(self._api_key)

    def _path(self, wire: Wire, order: Order) -> str:
        model = quote(f"{wire.model}{self._settings.gemini_model_suffix}", safe="")
        return f"/v1beta/models/{model}:{'batchGenerateContent' if self._is_batch(order) else 'generateContent'}"

    def _build_body(self, wire: Wire, order: Order, data: Sequence[str], callback_url: str | None) -> dict[str, Any]:
        """Return the body of an order. data: base64 of each reference, or what stands for it."""
        request = build_content(order, wire.spell(order, ()), data)
        return batches.wrap(request, callback_url) if self._is_batch(order) else request

    def _is_batch(self, order: Order) -> bool:
        return self._settings.uses_batch and order.priority == "low"

    def _discount(self, is_batch: bool) -> float:
        return BATCH_DISCOUNT if is_batch else 1.0

    def _wire_of_model(self, model: str | None) -> Wire:
        """Return the spelling, hence the prices, of a model by its id at Google."""
        return self.context.catalog.wire_by_id(self.catalog_name, model or "") or Wire()
