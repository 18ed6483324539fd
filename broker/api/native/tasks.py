"""Orders and tasks of the native dialect: create, poll, stream, list, cancel, retry."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.auth import Caller
from broker.api.http.endpoint import caller_of
from broker.api.http.pagination import make_cursor, read_choice, read_cursor, read_limit, split_page
from broker.api.http.request_body import media_type_of, read_form, read_json_object
from broker.api.http.responses import POLL_SECONDS, json_response, requested_language
from broker.api.native.params import OrderParams, read_form_order, read_json_order
from broker.api.native.schemas import (
    CostEstimate,
    DryRunResponse,
    OrderAccepted,
    ProviderPreview,
    TaskPage,
    TaskResponse,
)
from broker.api.native.task_cache import TaskCache
from broker.broker import Broker, Created, Quote
from broker.errors import Refusal
from broker.i18n import Language, Messages
from broker.orders import Request as Order
from broker.repeats import Repeats
from storage.states import SHOWN

MAX_WAIT_SECONDS: Final = 30.0
MAX_JSON_BYTES: Final = 48 * 2**20
FORM_OVERHEAD_BYTES: Final = 2 * 2**20
PING_SECONDS: Final = 15

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, kw_only=True)
class TaskRoutes:
    broker: Broker
    cache: TaskCache
    messages: Messages
    repeats: Repeats[Created]

    # -- orders

    async def create_image(self, request: Request) -> Response:
        """Order images. 1. Read the order. 2. Write durable tasks, or with `dryRun` show the provider request."""
        key = _idempotency_key(request)
        media_type, options = media_type_of(request)
        if media_type == "multipart/form-data":
            form = await read_form(request, options, self._max_form_bytes())
            try:
                return await self._order(request, read_form_order(form), key)
            finally:
                await form.close()
        if media_type == "application/json" or re.fullmatch(r"application/[\w.-]+\+json", media_type):
            document = await read_json_object(request, min(MAX_JSON_BYTES, self._max_form_bytes()))
            return await self._order(request, read_json_order(document), key)
        raise Refusal(
            "invalid_request", "Send the order as multipart/form-data or application/json.", field="Content-Type"
        )

    def _max_form_bytes(self) -> int:
        """Return the size of the most and largest images that a model takes, and the rest of the form."""
        count = max(model.max_references for model in self.broker.catalog.models)
        return count * self.broker.max_file_size + FORM_OVERHEAD_BYTES

    async def _order(self, request: Request, params: OrderParams, key: str | None) -> Response:
        order = params.to_request(key, _retry_count(request))
        if params.dry_run:
            preview = await self.broker.preview(order)
            data = ProviderPreview(**{**preview, "ignored": params.ignored_fields(preview["ignored"])})
            document = DryRunResponse(success=True, dry_run=True, data=data).to_document()
            return json_response(document, 200, _warning_headers(data.warnings))
        created = await self._create(request, caller_of(request), order)
        ignored = params.ignored_fields(created.ignored)
        return self._accepted(created, self.broker.quote(order), ignored, requested_language(request))

    async def _create(self, request: Request, caller: Caller, order: Order) -> Created:
        """Write durable tasks; join the first try of a client that retries by itself, unless it sends a key."""
        if order.sent_before is None or order.idempotency_key is not None:
            return await self.broker.create(caller.name, order)
        who = (caller.name, await self.broker.fingerprint(order))
        created = await self.repeats.once(who, order.sent_before, lambda: self.broker.create(caller.name, order))
        if not await request.is_disconnected():
            self.repeats.answered(who, created)
        return created

    def _accepted(self, created: Created, quote: Quote, ignored: list[str], language: Language) -> Response:
        first, batch = created.tasks[0].id, created.tasks[0].batch
        accepted = OrderAccepted(
            success=True,
            task_id=first,
            status="processing",
            message=self.messages.get("processing", language),
            poll_url=f"/api/task/{first}",
            task_ids=[task.id for task in created.tasks],
            batch_id=batch,
            batch_url=f"/api/batch/{batch}",
            ignored=ignored,
            warnings=list(quote.warnings),
            estimate=CostEstimate(price=quote.price, count=quote.count, total=quote.total, unit=quote.unit),
        )
        headers = {"location": accepted.poll_url, "retry-after": POLL_SECONDS, **_warning_headers(quote.warnings)}
        return json_response(accepted.to_document(), 202, headers)

    async def retry_task(self, request: Request) -> Response:
        """Order a failed task again, as a new one; the same new one for every call until that has ended."""
        caller, order = await self.broker.failed_order(request.path_params["id"])
        created = await self.broker.create(caller, order)
        return self._accepted(created, self.broker.quote(order), list(created.ignored), requested_language(request))

    # -- tasks

    async def get_task(self, request: Request) -> Response:
        """Return a task; with `wait` as soon as it has ended or the time is over."""
        task_id = request.path_params["id"]
        if seconds := read_wait(request):
            await wait_unless_disconnected(request, self.broker.wait(task_id, seconds))
        return (await self.cache.response(task_id, requested_language(request))).respond(request)

    async def stream_task(self, request: Request) -> Response:
        """Stream a task. An event's id is a hash of its content, so a client is not sent what it has."""
        task_id, language = request.path_params["id"], requested_language(request)
        current = await self.cache.response(task_id, language)
        last = request.headers.get("last-event-id")
        if last == _event_id(current.tag) and (await self.broker.get(task_id)).ended:
            return Response(status_code=204)  # the only response after which a browser does not reconnect
        return _TaskStream(
            self._events(task_id, language, last), ping=PING_SECONDS, sep="\n", headers={"Vary": "Accept-Language"}
        )

    async def _events(self, task_id: str, language: Language, last: str | None) -> AsyncIterator[ServerSentEvent]:
        with suppress(Refusal):  # deleted during the stream: the next request gets the error
            async with aclosing(self.broker.changes(task_id)) as changes:
                async for _ in changes:
                    current = await self.cache.response(task_id, language)
                    if _event_id(current.tag) != last:
                        last = _event_id(current.tag)
                        yield ServerSentEvent(current.body.decode(), id=last, sep="\n")

    async def list_tasks(self, request: Request) -> Response:
        """Return a page of tasks, newest first."""
        status = read_choice(request, "status", tuple(SHOWN))
        limit, before = read_limit(request), read_cursor(request, "task")
        tasks = await self.broker.newest(status=status, limit=limit + 1, before=before)
        page, has_more = split_page(tasks, limit)
        language = requested_language(request)
        document = TaskPage(
            success=True,
            data=[await self.cache.task_data(task, language) for task in page],
            next_cursor=make_cursor(page[-1].created_at, page[-1].id) if has_more else None,
        )
        return json_response(document.to_document())

    async def cancel_task(self, request: Request) -> Response:
        task = await self.broker.cancel(request.path_params["id"])
        data = await self.cache.task_data(task, requested_language(request))
        return json_response(TaskResponse(success=True, data=data).to_document())


class _TaskStream(EventSourceResponse):
    """The broker ends its streams itself when it closes; the library would poll for a signal twice a second."""

    @staticmethod
    async def _listen_for_exit_signal() -> None:
        await anyio.sleep_forever()


def _event_id(tag: str) -> str:
    return tag.strip('"')


async def wait_unless_disconnected(request: Request, waiting: Any) -> None:
    """Wait for an awaitable, but not longer than the client stays connected."""
    waiter, disconnect = asyncio.ensure_future(waiting), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({waiter, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if waiter.done():
            waiter.result()
    finally:
        waiter.cancel()
        disconnect.cancel()
        await asyncio.gather(waiter, disconnect, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _warning_headers(warnings: Sequence[str]) -> dict[str, str]:
    """RFC 7234, 5.5: 299 is persistent, - hides our name. The sentences of the catalog are ASCII without quotes."""
    return {"warning": ", ".join(f'299 - "{warning}"' for warning in warnings)} if warnings else {}


# -- headers and query


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise Refusal(
            "invalid_request", "Idempotency-Key must be 1 to 255 visible ASCII characters.", field="Idempotency-Key"
        )
    return keys[0]


def _retry_count(request: Request) -> int | None:
    """Return how often a Stainless SDK has already sent this request; None for other clients."""
    count = request.headers.get("x-stainless-retry-count", "")
    return int(count) if re.fullmatch(r"[0-9]{1,3}", count) else None


def read_wait(request: Request) -> float:
    """Return the seconds of `wait`, 0 … `MAX_WAIT_SECONDS`."""
    text = request.query_params.get("wait")
    if not text:
        return 0.0
    if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", text):
        raise Refusal(
            "invalid_request", f"wait must be a number of seconds up to {MAX_WAIT_SECONDS:.0f}.", field="wait"
        )
    return min(float(text), MAX_WAIT_SECONDS)
