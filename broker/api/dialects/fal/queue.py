"""The queue: submit, status, stream of the status, result, cancel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from broker.api.dialects.fal.apps import OWNERS
from broker.api.dialects.fal.errors import REQUEST_ID
from broker.api.dialects.fal.orders import APP_KEY, INLINE_KEY, FalOrders
from broker.api.dialects.fal.results import FalResults
from broker.api.dialects.fal.schemas import FalCanceled, FalError, FalTicket
from broker.api.dialects.fal.statuses import COMPLETED, FalStatuses, request_addresses
from broker.api.dialects.fal.targets import FalTarget
from broker.api.http.endpoint import principal_of
from broker.api.http.responses import json_response
from broker.api.shared.held_streams import HEARTBEAT, event_bytes
from broker.errors import ApiError
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.queries import TaskQueries
from storage.sql.scope import Scope
from storage.tasks import Task

_TRUE: Final = frozenset({"1", "true"})


@dataclass(frozen=True, kw_only=True)
class FalQueue:
    """What the endpoints of the queue do, called directly or through the proxy."""

    orders: FalOrders
    queries: TaskQueries
    canceler: TaskCanceler
    statuses: FalStatuses
    results: FalResults

    async def submit(self, request: Request, target: FalTarget) -> Response:
        """Order, and answer at once."""
        order = await self.orders.place(request, target, is_held=False)
        first = order.placed.tasks[0]
        base = self.orders.base_for(request)
        position = await self.statuses.queue_position(await self.queries.get(first, principal_of(request).scope))
        ticket = FalTicket(status="IN_QUEUE", queue_position=position, **request_addresses(base, order.app.name, first))
        return json_response(ticket.to_document(), 200, {REQUEST_ID: first})

    async def get_status(self, request: Request, target: FalTarget) -> Response:
        tasks = await self._tasks(request, target.request_id)
        status = await self.statuses.describe(tasks, self._addresses(request, tasks[0]), with_logs=_wants_logs(target))
        code = 200 if status.status == COMPLETED else 202
        return json_response(status.to_document(), code, {REQUEST_ID: target.request_id})

    async def stream_status(self, request: Request, target: FalTarget) -> Response:
        tasks = await self._tasks(request, target.request_id)
        addresses = self._addresses(request, tasks[0])
        headers = {REQUEST_ID: target.request_id, "cache-control": "no-store"}
        return StreamingResponse(
            self._events(tasks, addresses, principal_of(request).scope, with_logs=_wants_logs(target)),
            headers=headers,
            media_type="text/event-stream",
        )

    async def get_result(self, request: Request, target: FalTarget) -> Response:
        tasks = await self._tasks(request, target.request_id)
        if not all(task.has_ended for task in tasks):
            message = "Request is still in progress"
            body = FalError(detail=message, message=message)
            return json_response(body.to_document(), 400, {REQUEST_ID: target.request_id})
        is_inline = bool(tasks[0].origin.get(INLINE_KEY))
        base = self.orders.base_for(request)
        return await self.results.render_output(tasks, base, is_inline=is_inline)

    async def cancel(self, request: Request, target: FalTarget) -> Response:
        scope = principal_of(request).scope
        tasks = await self._tasks(request, target.request_id)
        try:
            if len(tasks) > 1:
                await self.canceler.cancel_batch(tasks[0].batch, scope)
            else:
                await self.canceler.cancel_task(tasks[0].id, scope)
        except ApiError as error:
            if error.code != "conflict":
                raise
            body = FalCanceled(status="ALREADY_COMPLETED")
            return json_response(body.to_document(), 400, {REQUEST_ID: target.request_id})
        body = FalCanceled(status="CANCELLATION_REQUESTED")
        return json_response(body.to_document(), 202, {REQUEST_ID: target.request_id})

    # -- reading

    async def _tasks(self, request: Request, request_id: str) -> list[Task]:
        """Return the images of a request; its id is that of the first one.

        A task of another dialect stands alone: the others of its batch may be different orders.
        """
        scope = principal_of(request).scope
        task = await self.queries.get(request_id, scope)
        return await self.queries.get_batch(task.batch, scope) if task.origin.get("dialect") == "fal" else [task]

    def _addresses(self, request: Request, task: Task) -> dict[str, Any]:
        """Return the addresses of a request, by the app of its order: the path may have any."""
        app = task.origin.get(APP_KEY) or f"{OWNERS[0]}/{task.model}"
        return request_addresses(self.orders.base_for(request), str(app), task.id)

    async def _events(
        self, tasks: list[Task], addresses: dict[str, Any], scope: Scope, *, with_logs: bool
    ) -> AsyncIterator[bytes]:
        """Yield the state now and at each change, until the end; a heartbeat where nothing has changed."""
        last = b""
        with suppress(ApiError):  # deleted during the stream
            for task in tasks:
                async with aclosing(self.queries.changes(task.id, scope)) as changes:
                    async for _ in changes:
                        now = await self.queries.get_batch(task.batch, scope)
                        status = await self.statuses.describe(now, addresses, with_logs=with_logs)
                        event = event_bytes(status.to_document())
                        yield HEARTBEAT if event == last else event
                        last = event


def _wants_logs(target: FalTarget) -> bool:
    return target.query.get("logs", "").lower() in _TRUE
