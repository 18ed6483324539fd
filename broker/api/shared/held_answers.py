"""Held answers: a synchronous dialect keeps its client waiting until the task has ended.

The order is durable before the wait begins. The wait occupies neither a thread nor a connection to the database, and
holds nothing of the request's body. The client may leave; an equal request then gets the same order
(`broker.ordering.idempotency`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from broker.api.http.addresses import reached_host
from broker.api.http.answers import TrackedAnswer, allow_retry, mark_unfinished, track_answer
from broker.api.http.endpoint import principal_of
from broker.api.http.errors import unavailable
from broker.api.http.identity import idempotency_key, retry_count
from broker.api.http.responses import to_json, warning_headers
from broker.api.http.waiting import wait_while_connected
from broker.api.shared.task_errors import still_running
from broker.errors import ApiError
from broker.ordering.drafts import BatchDetails, Continuation, PlannedOrder, naming_order
from broker.ordering.idempotency import HELD_RETRY_SECONDS, RETRY_WINDOW_SECONDS
from broker.ordering.service import CreatedTasks, OrderService
from broker.orders import OrderRequest
from broker.services import Services
from broker.tasks.queries import TaskQueries
from storage.errors import StorageError
from storage.sql.scope import EVERYTHING
from storage.tasks import Task

BLANKS_AFTER_SECONDS: Final = 60.0
"""Proxies close a connection that was silent for about 100 seconds."""
BLANK_SECONDS: Final = 15.0
MAX_IGNORED: Final = 20
"""Names in `x-ignored`."""
_HEADER_NAME: Final = re.compile(r"[!-+\--~]{1,64}")
"""A name that fits in a list in a header."""

ORDER_ERRORS: Final = (
    *("invalid_request", "invalid_prompt", "invalid_image", "too_many_images", "unsupported_parameter"),
    *("payload_too_large", "idempotency_mismatch", "task_expired", "rate_limited", "quota_exceeded"),
)
"""Codes of the errors of an endpoint that takes an order."""

NO_SPELLING: Final[Mapping[str, str]] = {}

Render = Callable[[Sequence[Task]], Awaitable[Response]]
"""The ended tasks of an order → the response. Raises `ApiError` for an order that failed."""
RenderLate = Callable[[ApiError], Mapping[str, Any] | bytes]
"""The failure of an order → what stands for it in an answer that has begun as a success: JSON, or the bytes."""


@dataclass(frozen=True, kw_only=True)
class _LateAnswer:
    """An answer that begins with blank lines."""

    render: Render
    render_late: RenderLate
    blank: bytes


@dataclass(frozen=True, kw_only=True)
class PlacedOrder:
    """A durable order, without anything of its request. It belongs to the caller that is answered."""

    batch: str
    tasks: tuple[str, ...]
    """Their ids."""
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HeldAnswers:
    """Places orders of dialects, and waits for their end."""

    orders: OrderService
    queries: TaskQueries
    hold_seconds: float
    """Longest wait; after it the answer names the task."""
    blanks_after_seconds: float = BLANKS_AFTER_SECONDS
    blank_seconds: float = BLANK_SECONDS

    @classmethod
    def from_services(cls, services: Services) -> HeldAnswers:
        return cls(orders=services.orders, queries=services.queries, hold_seconds=services.settings.hold)

    # -- placing

    async def place(
        self,
        request: Request,
        order: OrderRequest,
        *,
        is_held: bool = True,
        ignored: Sequence[str] = (),
        spelling: Mapping[str, str] = NO_SPELLING,
        continuation: Continuation | None = None,
    ) -> PlacedOrder:
        """Make the order durable; the answer is then recorded as sent or cut off.

        order: without key and retry count, which are read from the request. is_held: the answer waits for the end.
        ignored: fields that the dialect does not use. spelling: names of fields in the native API → in the dialect.
        continuation: the conversation that it continues.
        Raises `ApiError`; then nothing was ordered.
        """
        planned = await self._plan(request, order, HELD_RETRY_SECONDS if is_held else RETRY_WINDOW_SECONDS)
        created = await self.orders.create(principal_of(request).owner, planned.request, planned.plan, continuation)
        unused = _listed_names((*(spelling.get(name, name) for name in planned.plan.ignored), *ignored))
        return self._track(request, created, unused, planned.plan.warnings)

    async def place_together(
        self,
        request: Request,
        orders: Sequence[OrderRequest],
        details: BatchDetails,
        *,
        ignored: Sequence[str] = (),
        spelling: Mapping[str, str] = NO_SPELLING,
    ) -> PlacedOrder:
        """Make a batch of different orders durable, all or none, like `place`; its answer does not wait."""
        planned = []
        for number, order in enumerate(orders, 1):
            with naming_order(number, len(orders)):
                planned.append(await self._plan(request, order, RETRY_WINDOW_SECONDS))
        created = await self.orders.create_together(principal_of(request).owner, planned, details)
        names = (spelling.get(name, name) for one in planned for name in one.plan.ignored)
        warnings = dict.fromkeys(warning for one in planned for warning in one.plan.warnings)
        return self._track(request, created, _listed_names((*names, *ignored)), tuple(warnings))

    async def _plan(self, request: Request, order: OrderRequest, retry_seconds: float) -> PlannedOrder:
        order = replace(
            order,
            host=reached_host(request),
            idempotency_key=idempotency_key(request),
            retry_count=retry_count(request),
            retry_seconds=retry_seconds,
        )
        return PlannedOrder(request=order, plan=await self.orders.plan(principal_of(request).owner, order))

    def _track(
        self, request: Request, created: CreatedTasks, unused: tuple[str, ...], warnings: tuple[str, ...]
    ) -> PlacedOrder:
        """Let the end of the answer be recorded, and add the headers of an order to it."""
        placed = PlacedOrder(
            batch=created.tasks[0].batch,
            tasks=tuple(task.id for task in created.tasks),
            ignored=unused,
            warnings=warnings,
        )
        headers = {"x-request-id": placed.tasks[0], "x-should-retry": "false", **warning_headers(warnings)}
        headers |= {"x-ignored": ", ".join(unused)} if unused else {}
        tracked = TrackedAnswer(answers=self.orders.answers, answer=created.answer, headers=headers)
        track_answer(request.scope, tracked)
        return placed

    # -- waiting

    async def answer(
        self,
        request: Request,
        placed: PlacedOrder,
        render: Render,
        *,
        render_late: RenderLate | None = None,
        blank: bytes = b"\n",
        media_type: str = "application/json",
    ) -> Response:
        """Wait for the end of an order, and return its response.

        render_late: for a dialect whose clients accept blank lines before JSON: what a failure looks like inside a
        success, because blank lines begin the answer after a minute. blank: such a line. media_type: of an answer
        that begins so. Raises `ApiError` for a failed order, and when the time is over.
        """
        seconds = min(self.blanks_after_seconds, self.hold_seconds) if render_late else self.hold_seconds
        if await self.wait(request, placed, seconds):
            return await render(await self.ended_tasks(placed))
        if render_late is None or seconds >= self.hold_seconds:
            raise _give_up(request, placed)
        late = _LateAnswer(render=render, render_late=render_late, blank=blank)
        headers = {"content-type": media_type, "cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._trickle(request, placed, late), headers=headers)

    async def wait(self, request: Request, placed: PlacedOrder, seconds: float, *, is_pollable: bool = False) -> bool:
        """Wait until all tasks of an order have ended; return False if the time is over.

        is_pollable: an answer before the end names the order, and the client polls it; then the time is also over when
        the server stops. Raises `ApiError` when the server stops, and `ClientDisconnect`.
        """
        ending = await wait_while_connected(request, self.queries.wait_for_batch(placed.batch, EVERYTHING), seconds)
        if ending == "left":
            mark_unfinished(request)
            raise ClientDisconnect
        has_ended = ending == "done" and all(task.has_ended for task in await self.ended_tasks(placed))
        if self.queries.closing and not has_ended and not is_pollable:
            mark_unfinished(request)
            allow_retry(request)
            raise unavailable()
        return has_ended

    async def pauses(self, request: Request, placed: PlacedOrder, seconds: float | None = None) -> AsyncIterator[None]:
        """Wait like `wait`, and yield at each moment when something must be sent, so that proxies stay connected.

        seconds: by default the longest wait. Raises `ApiError` when the time is over.
        """
        left = self.hold_seconds if seconds is None else seconds
        while not await self.wait(request, placed, min(self.blank_seconds, left)):
            left -= self.blank_seconds
            if left <= 0:
                raise _give_up(request, placed)
            yield

    async def ended_tasks(self, placed: PlacedOrder) -> list[Task]:
        """Return the tasks of an order, in order."""
        return await self.queries.get_batch(placed.batch, EVERYTHING)

    async def _trickle(self, request: Request, placed: PlacedOrder, late: _LateAnswer) -> AsyncIterator[bytes]:
        """Yield blank lines until the order has ended, then its response, or its failure as `render_late` shows it."""
        left = self.hold_seconds - self.blanks_after_seconds
        try:
            async for _ in self.pauses(request, placed, left):
                yield late.blank
            response = await late.render(await self.ended_tasks(placed))
        except ClientDisconnect:
            return
        except (ApiError, StorageError) as error:
            failure = late.render_late(_told_late(request, error))
            yield failure if isinstance(failure, bytes) else to_json(failure)
            return
        async for chunk in _body_of(response):
            yield chunk


def _told_late(request: Request, error: ApiError | StorageError) -> ApiError:
    """Return the error that stands in an answer that has begun."""
    if isinstance(error, ApiError):
        return error
    mark_unfinished(request)
    return unavailable()


def _listed_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names once each, without those that do not fit in a header: they may come from a client."""
    return tuple(name for name in dict.fromkeys(names) if _HEADER_NAME.fullmatch(name))[:MAX_IGNORED]


def _give_up(request: Request, placed: PlacedOrder) -> ApiError:
    """Return the error that names the task; an equal request waits for it again."""
    mark_unfinished(request)
    return still_running(placed.tasks)


def wants_async(request: Request) -> bool:
    """Return whether the client prefers an answer at once (RFC 7240)."""
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(preference.partition(";")[0].strip() == "respond-async" for preference in preferences)


async def _body_of(response: Response) -> AsyncIterator[bytes]:
    if isinstance(response, StreamingResponse):
        async for chunk in response.body_iterator:
            yield chunk if isinstance(chunk, bytes) else str(chunk).encode()
    else:
        yield bytes(response.body)
