"""Our own dialect: order, poll, follow, cancel, list."""

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

from broker.api import bodies
from broker.api.access import Access, Caller
from broker.api.answers import POLL_SECONDS, answer, language
from broker.api.fields import Given
from broker.api.pages import cursor_after, cursor_of, limit_of, page_of
from broker.api.views import Views
from broker.catalog import Catalog
from broker.errors import Refusal
from broker.ordering.service import CreatedTasks, OrderService
from broker.orders import Plan
from broker.sentences import Language, Sentences
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.queries import TaskQueries
from storage.tasks import SHOWN

LONGEST_WAIT: Final = 30.0
MOST_JSON_BYTES: Final = 48 * 2**20
FORM_OVERHEAD: Final = 2 * 2**20
PING_SECONDS: Final = 15

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, kw_only=True)
class Native:
    """The routes of the contract's Native HTTP."""

    orders: OrderService
    queries: TaskQueries
    canceler: TaskCanceler
    access: Access
    views: Views
    sentences: Sentences
    max_form_bytes: int

    # -- ordering

    async def create(self, request: Request) -> Response:
        """Order images. 1. Who asks. 2. What they say. 3. Durable tasks, or with `dryRun` what would be sent."""
        caller = self.access.require(request)
        key = _idempotency_key(request)
        media_type, options = bodies.kind(request)
        if media_type == "multipart/form-data":
            form = await bodies.read_form(request, options, self.max_form_bytes)
            try:
                return await self._order(request, caller, Given.in_form(form), key)
            finally:
                await form.close()
        if media_type == "application/json" or re.fullmatch(r"application/[\w.-]+\+json", media_type):
            document = await bodies.read_object(request, min(MOST_JSON_BYTES, self.max_form_bytes))
            return await self._order(request, caller, Given.in_object(document), key)
        raise Refusal(
            "invalid_request", "Send the order as multipart/form-data or application/json.", field="Content-Type"
        )

    async def _order(self, request: Request, caller: Caller, given: Given, key: str | None) -> Response:
        order = given.request(key, _retry_count(request))
        plan = self.orders.plan(order)
        if given.truth("dryRun"):
            preview = await self.orders.dry_run(order, plan)
            document = {**preview, "ignored": given.ignored(preview["ignored"])}
            return answer({"success": True, "dryRun": True, "data": document}, 200, _warned(plan.warnings))
        created = await self.orders.create(caller.name, order, plan)
        if not await request.is_disconnected():
            await self.orders.mark_answered(created)
        return self._accepted(created, plan, given.ignored(plan.ignored), language(request))

    def _accepted(self, created: CreatedTasks, plan: Plan, ignored: list[str], language: Language) -> Response:
        first, batch, quote = created.tasks[0].id, created.tasks[0].batch, plan.quote
        document = {
            "success": True,
            "taskId": first,
            "status": "processing",
            "message": self.sentences.say("processing", language),
            "pollUrl": f"/api/task/{first}",
            "taskIds": [task.id for task in created.tasks],
            "batchId": batch,
            "batchUrl": f"/api/batch/{batch}",
            "ignored": ignored,
            "warnings": list(plan.warnings),
            "estimate": {"price": quote.price, "count": quote.count, "total": quote.total, "unit": quote.unit},
        }
        headers = {"location": f"/api/task/{first}", "retry-after": POLL_SECONDS, **_warned(plan.warnings)}
        return answer(document, 202, headers)

    # -- looking

    async def poll(self, request: Request) -> Response:
        """How a task is; with `wait` not before it has ended or the time is over."""
        task_id = request.path_params["id"]
        seconds = seconds_to_wait(request)
        if seconds:
            await unless_gone(request, self.queries.wait(task_id, seconds))
        return (await self.views.of(task_id, language(request))).to(request)

    async def events(self, request: Request) -> Response:
        """The same as a stream. An event's id is its content, so a caller who has it is not sent it again."""
        task_id, speech = request.path_params["id"], language(request)
        now = await self.views.of(task_id, speech)
        last = request.headers.get("last-event-id")
        if last == _event_id(now.tag) and (await self.queries.get(task_id)).ended:
            return Response(status_code=204)  # the one answer after which a browser does not come again
        return _Events(
            self._changes(task_id, speech, last), ping=PING_SECONDS, sep="\n", headers={"Vary": "Accept-Language"}
        )

    async def _changes(self, task_id: str, speech: Language, last: str | None) -> AsyncIterator[ServerSentEvent]:
        with suppress(Refusal):  # deleted while somebody looked on: the next request hears of it
            async with aclosing(self.queries.changes(task_id)) as changes:
                async for _ in changes:
                    now = await self.views.of(task_id, speech)
                    if _event_id(now.tag) != last:
                        last = _event_id(now.tag)
                        yield ServerSentEvent(now.body.decode(), id=last, sep="\n")

    async def listing(self, request: Request) -> Response:
        """The newest tasks, page by page."""
        self.access.require(request)
        status = request.query_params.get("status") or None
        if status is not None and status not in SHOWN:
            raise Refusal("invalid_request", f"status must be one of {', '.join(SHOWN)}.", field="status")
        limit = limit_of(request.query_params.get("limit"))
        before = cursor_of(request.query_params.get("cursor"), "task")
        tasks = await self.queries.list_newest(status=status, limit=limit + 1, before=before)
        page, more = page_of(tasks, limit)
        speech = language(request)
        documents = [await self.views.document(task, speech) for task in page]
        after = cursor_after(page[-1].created_at, page[-1].id) if more else None
        return answer({"success": True, "data": documents, "nextCursor": after})

    # -- changing

    async def cancel(self, request: Request) -> Response:
        self.access.require(request)
        task = await self.canceler.cancel_task(request.path_params["id"])
        return answer({"success": True, "data": await self.views.document(task, language(request))})

    async def retry(self, request: Request) -> Response:
        """A failed task again, as a new one. Asked for twice, the same new one."""
        self.access.require(request)
        caller, order = await self.orders.failed_request(request.path_params["id"])
        plan = self.orders.plan(order)
        created = await self.orders.create(caller, order, plan)
        return self._accepted(created, plan, list(plan.ignored), language(request))


class _Events(EventSourceResponse):
    """The broker ends its streams itself when it closes; the library would look for a signal twice a second."""

    @staticmethod
    async def _listen_for_exit_signal() -> None:
        await anyio.sleep_forever()


def _event_id(tag: str) -> str:
    return tag.strip('"')


def max_form_bytes(catalog: Catalog, max_file_size_bytes: int) -> int:
    """Return the size limit of a form: the references of the model that takes most, and the other fields."""
    return max(model.max_references for model in catalog.models) * max_file_size_bytes + FORM_OVERHEAD


async def unless_gone(request: Request, waiting: Any) -> None:
    """Wait, but not for somebody who hung up."""
    waiter, gone = asyncio.ensure_future(waiting), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({waiter, gone}, return_when=asyncio.FIRST_COMPLETED)
        if waiter.done():
            waiter.result()
    finally:
        waiter.cancel()
        gone.cancel()
        await asyncio.gather(waiter, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _warned(warnings: Sequence[str]) -> dict[str, str]:
    """RFC 7234, 5.5: 299 is what persists, - hides our name. The sentences of the catalog are ASCII without quotes."""
    return {"warning": ", ".join(f'299 - "{warning}"' for warning in warnings)} if warnings else {}


# -- what a request says beside its body


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
    """Return how many times an SDK made by Stainless says it has sent this request before; None for other clients."""
    count = request.headers.get("x-stainless-retry-count", "")
    return int(count) if re.fullmatch(r"[0-9]{1,3}", count) else None


def seconds_to_wait(request: Request) -> float:
    """What `wait` asks for, 0 … `LONGEST_WAIT`."""
    text = request.query_params.get("wait")
    if not text:
        return 0.0
    if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", text):
        raise Refusal("invalid_request", f"wait must be a number of seconds up to {LONGEST_WAIT:.0f}.", field="wait")
    return min(float(text), LONGEST_WAIT)
