"""Orders, tasks and batches of the native dialect: create, poll, stream, list, cancel, retry."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.admin.visibility import Visibility, VisibilityReader
from broker.api.http.addresses import reached_host
from broker.api.http.answers import TrackedAnswer, track_answer
from broker.api.http.endpoint import principal_of
from broker.api.http.identity import idempotency_key, retry_count
from broker.api.http.pagination import cursor_of, split_page
from broker.api.http.request_body import MAX_JSON_BYTES, media_type_of, read_form, read_json_object
from broker.api.http.responses import (
    JSON_HEADERS,
    POLL_SECONDS,
    CachedResponse,
    EncodedResponse,
    data_document,
    data_response,
    encode_text,
    json_response,
    requested_language,
    to_json_text,
    warning_headers,
)
from broker.api.http.waiting import wait_while_connected
from broker.api.native.event_stream import PING, PING_SECONDS, EventStream, event_bytes
from broker.api.native.params import OrderFields, read_form_order, read_json_order
from broker.api.native.schemas import (
    BatchData,
    CostEstimate,
    DeletionQuery,
    DryRunResponse,
    PollQuery,
    ProviderPreview,
    StatusCounts,
    TaskListQuery,
    TaskPage,
    WithheldTaskData,
)
from broker.api.native.task_cache import TaskCache
from broker.catalog import Catalog
from broker.errors import ApiError
from broker.i18n import Language, Messages
from broker.ordering.service import CreatedTasks, OrderService
from broker.orders import Plan, Quote
from broker.presenter import TaskData
from broker.principal import Principal
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.deletion import TaskDeleter
from broker.tasks.pins import TaskPins
from broker.tasks.queries import TaskQueries
from storage.ids import shorten_id
from storage.sql.scope import CAPABILITY
from storage.tasks import Task

BATCH_ENDS: Final = ("completed", "failed", "canceled")
"""The best first: one image is more than none."""


@dataclass(frozen=True, kw_only=True)
class TaskRoutes:
    orders: OrderService
    queries: TaskQueries
    canceler: TaskCanceler
    deleter: TaskDeleter
    pins: TaskPins
    catalog: Catalog
    cache: TaskCache
    visibility: VisibilityReader
    messages: Messages
    max_form_bytes: int

    # -- orders

    async def create_image(self, request: Request) -> Response:
        """Order images.

        The order is durable before the response is sent. Whatever can be rejected is rejected here, before it costs.
        With `dryRun` nothing is created: the response is the provider request and its price.
        """
        key = idempotency_key(request)
        media_type, options = media_type_of(request)
        if media_type == "multipart/form-data":
            form = await read_form(request, options, self.max_form_bytes)
            try:
                return await self._order(request, read_form_order(form), key)
            finally:
                await form.close()
        if media_type == "application/json" or re.fullmatch(r"application/[\w.-]+\+json", media_type):
            max_bytes = min(MAX_JSON_BYTES, self.max_form_bytes)
            return await self._order(request, await read_json_object(request, max_bytes, read_json_order), key)
        raise ApiError(
            "invalid_request", "Send the order as multipart/form-data or application/json.", field="Content-Type"
        )

    async def _order(self, request: Request, params: OrderFields, key: str | None) -> Response:
        caller = principal_of(request).owner
        order = params.to_request(key, retry_count(request), reached_host(request))
        plan = await self.orders.plan(caller, order)
        if params.dry_run:
            preview = await self.orders.dry_run(caller, order, plan)
            preview["ignored"] = params.ignored_fields(preview["ignored"])
            data = ProviderPreview.from_object(plan.quote, **preview)
            document = DryRunResponse(success=True, dry_run=True, data=data).to_document()
            return json_response(document, 200, warning_headers(data.warnings))
        created = await self.orders.create(caller, order, plan)
        track_answer(request.scope, TrackedAnswer(answers=self.orders.answers, answer=created.answer))
        return self._accepted(created, plan, params.ignored_fields(plan.ignored), requested_language(request))

    def _accepted(self, created: CreatedTasks, plan: Plan, ignored: list[str], language: Language) -> Response:
        first, batch = created.tasks[0].id, created.tasks[0].batch
        # `OrderAccepted`, written out: to build the model and dump it took a tenth of an order
        ids = '","'.join([task.id for task in created.tasks])
        message, plan_members, headers = _shared_parts(
            self.messages.get("processing", language), plan.warnings, plan.quote
        )
        body = (
            f'{{"success":true,"taskId":"{first}","status":"processing","message":{message},'
            f'"pollUrl":"/api/task/{first}","taskIds":["{ids}"],"batchId":"{batch}","batchUrl":"/api/batch/{batch}",'
            f'"ignored":{to_json_text(ignored) if ignored else "[]"},{plan_members}}}'
        )
        location = (b"location", f"/api/task/{first}".encode())
        return EncodedResponse(encode_text(body), 202, (*JSON_HEADERS, location, *headers))

    async def retry_task(self, request: Request) -> Response:
        """Retry a failed task as a new one.

        Canceled tasks, too. Repeated calls return the same new task until that has ended. 409 for a task that did not
        fail, one whose retry did not, and one whose paid image is still being downloaded. It is its owner's alone,
        who pays for it.
        """
        caller, order = await self.orders.failed_request(request.path_params["id"], principal_of(request).scope)
        plan = await self.orders.plan(caller, order)
        created = await self.orders.create(caller, order, plan)
        return self._accepted(created, plan, list(plan.ignored), requested_language(request))

    # -- tasks

    async def get_task(self, request: Request) -> Response:
        """Get a task.

        `status` never goes back, with one exception: a paid image that arrives after *failed* makes the task
        *completed*.
        """
        task_id, seen = request.path_params["id"], None
        if seconds := PollQuery.read(request).wait:
            await wait_while_connected(request, self.queries.wait(task_id, CAPABILITY), seconds)
            seen = await self.queries.get_version(task_id)
        return (await self.cache.response(task_id, requested_language(request), seen=seen)).respond(request)

    async def stream_task(self, request: Request) -> Response:
        """Stream a task.

        Server-sent events: the response of a poll at once and at each change, until the end.
        """
        task_id, language = request.path_params["id"], requested_language(request)
        task, last = await self.queries.get(task_id, CAPABILITY), request.headers.get("last-event-id")
        if task.has_ended and last:
            current = await self.cache.response(task_id, language, seen=task.version)
            if last == _event_id(current.tag):
                return Response(status_code=204)  # the only response after which a browser does not reconnect
        return EventStream(self._events(task_id, language, last))

    async def _events(self, task_id: str, language: Language, last: str | None) -> AsyncGenerator[bytes, None]:
        with suppress(ApiError):  # deleted during the stream: the next request gets the error

            def pause() -> float:
                return min(PING_SECONDS, self.cache.fresh_seconds(task_id, language))

            async with aclosing(self.queries.changes(task_id, CAPABILITY, pause)) as changes:
                async for version in changes:
                    current = await self.cache.response(task_id, language, seen=version)
                    is_new = _event_id(current.tag) != last
                    last = _event_id(current.tag)
                    yield event_bytes(last, current.body) if is_new else PING

    async def list_tasks(self, request: Request) -> Response:
        """List tasks, newest first.

        Your own; admins get those of all accounts, the others' without content and with `withheld`. `q` searches the
        prompts of tasks that you may read. With `q` or `model`, a page looks at the next ten thousand tasks: it may be
        short or empty although `nextCursor` leads on.
        """
        query, principal = TaskListQuery.read(request), principal_of(request)
        tasks, searched_to = await self._find_tasks(query, principal)
        shown = [*tasks, searched_to] if searched_to else tasks
        visibility = await self.visibility.of_owners(principal, {task.caller for task in shown})
        page, next_cursor = split_page(tasks, query.limit, lambda task: _position(task, visibility))
        if next_cursor is None and searched_to is not None:
            next_cursor = cursor_of(*_position(searched_to, visibility))
        language = requested_language(request)
        data = [await self._listed_task(task, visibility, language) for task in page]
        return json_response(TaskPage(success=True, data=data, next_cursor=next_cursor).to_document())

    async def _find_tasks(self, query: TaskListQuery, principal: Principal) -> tuple[Sequence[Task], Task | None]:
        """Return a page and the first task of the next one; or what a search found, and the last task that it saw."""
        before, limit = await self._page_start(query.cursor, principal), query.limit + 1
        scope = principal.scope if query.q else principal.oversight
        if not query.q and not query.model:
            return await self.queries.list_newest(scope, status=query.status, limit=limit, before=before), None
        model = self.catalog.resolve(query.model).name if query.model else None
        return await self.queries.search_newest(
            scope, status=query.status, limit=limit, before=before, model=model, words=query.q
        )

    async def _page_start(self, cursor: tuple[float, str] | None, principal: Principal) -> tuple[float, str] | None:
        """Return the position of a cursor, which the caller may have made up.

        Of an id no more counts than is shown, unless it is that of a task that the admin may read: otherwise the order
        of a cursor and a task would tell the task's id, digit by digit.
        """
        if cursor is None or not principal.is_admin:
            return cursor
        moment, task_id = cursor
        task = await self.queries.tasks.get(task_id)
        is_read = task is not None and task.created_at == moment and principal.may_read(task.caller)
        return cursor if is_read else (moment, shorten_id(task_id))

    async def _listed_task(self, task: Task, visibility: Visibility, language: Language) -> TaskData | WithheldTaskData:
        if not visibility.is_withheld(task.caller):
            return await self.cache.task_data(task, language)
        shown = self.cache.presenter.task(task, (), language)
        shown_id = visibility.task_id(task.id, task.caller)
        return WithheldTaskData.from_task(shown, shown_id, visibility.owner_name(task.caller))

    async def cancel_or_delete_task(self, request: Request) -> Response:
        """Cancel a task, or delete one that has ended, with its images.

        With `cancelOnly` nothing is deleted, and with `deleteOnly` nothing is canceled: 409 for a task that has ended,
        or has not.
        """
        task_id, scope = request.path_params["id"], principal_of(request).oversight
        query = DeletionQuery.read(request)
        if query.cancel_only and query.delete_only:
            raise ApiError("invalid_request", "deleteOnly excludes cancelOnly.", field="deleteOnly")
        deletes = query.delete_only
        if not query.cancel_only and not query.delete_only:
            deletes = (await self.queries.get(task_id, scope)).has_ended
        if deletes:
            await self.deleter.delete_task(task_id, scope)
            return Response(status_code=204)
        task = await self.canceler.cancel_task(task_id, scope)
        return data_response(await self.cache.task_data(task, requested_language(request)))

    async def pin_task(self, request: Request) -> Response:
        """Pin a task: keep it beyond retention.

        It stays with its images until it is unpinned or deleted; `expiresAt` is null. A task that has not ended can be
        pinned as well.
        """
        task = await self.pins.pin_task(request.path_params["id"], principal_of(request).scope)
        return data_response(await self.cache.task_data(task, requested_language(request)))

    async def unpin_task(self, request: Request) -> Response:
        """Unpin a task.

        It is deleted when it would have been without the pin. If that time is over, it is deleted at once: the response
        is 200 or 410 then.
        """
        task = await self.pins.unpin_task(request.path_params["id"], principal_of(request).scope)
        return data_response(await self.cache.task_data(task, requested_language(request)))

    # -- batches

    async def get_batch(self, request: Request) -> Response:
        """Get all tasks of one request."""
        batch_id = request.path_params["id"]
        if seconds := PollQuery.read(request).wait:
            await wait_while_connected(request, self.queries.wait_for_batch(batch_id, CAPABILITY), seconds)
        tasks = await self.queries.get_batch(batch_id, CAPABILITY)
        document = data_document(await self._present_batch(batch_id, tasks, requested_language(request)))
        ended = all(task.has_ended for task in tasks)
        return CachedResponse.from_document(document, ended=ended).respond(request)

    async def cancel_batch(self, request: Request) -> Response:
        """Cancel all tasks of one request.

        Those that have not ended, and whose image is not being downloaded.
        """
        batch_id = request.path_params["id"]
        tasks = await self.canceler.cancel_batch(batch_id, principal_of(request).oversight)
        return data_response(await self._present_batch(batch_id, tasks, requested_language(request)))

    async def _present_batch(self, batch_id: str, tasks: Sequence[Task], language: Language) -> BatchData:
        counts = Counter(task.status for task in tasks)
        return BatchData(
            id=batch_id,
            status=_batch_status(counts),
            counts=StatusCounts(**{status: counts[status] for status in StatusCounts.model_fields}),
            tasks=[await self.cache.task_data(task, language) for task in tasks],
        )


@lru_cache(maxsize=256)  # there are few prices
def _shared_parts(
    message: str, warnings: tuple[str, ...], quote: Quote
) -> tuple[str, str, tuple[tuple[bytes, bytes], ...]]:
    """Return what many answers to orders share: the message, the last members of `OrderAccepted`, and headers."""
    estimate = CostEstimate.from_object(quote).to_document()
    members = f'"warnings":{to_json_text(list(warnings))},"estimate":{to_json_text(estimate)}'
    headers = {"retry-after": POLL_SECONDS, **warning_headers(warnings)}
    return to_json_text(message), members, tuple((name.encode(), value.encode()) for name, value in headers.items())


def _batch_status(counts: Counter[str]) -> str:
    """Return the status of a batch: unfinished while one task is, then the best end."""
    if counts["processing"] or (counts["pending"] and len(+counts) > 1):
        return "processing"
    return "pending" if counts["pending"] else next(status for status in BATCH_ENDS if counts[status])


def _position(task: Task, visibility: Visibility) -> tuple[float, str]:
    """Return what the cursor of the next page names: of a task whose content is withheld no id that opens it."""
    return task.created_at, shorten_id(task.id) if visibility.is_withheld(task.caller) else task.id


def _event_id(tag: str) -> str:
    return tag.strip('"')
