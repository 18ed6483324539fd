"""Order service: turns a planned request into durable tasks, exactly once."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

from broker.clock import Clock
from broker.errors import ApiError
from broker.logs import log
from broker.metrics import Metrics
from broker.ordering.answers import OpenAnswer, OpenAnswers
from broker.ordering.drafts import (
    BatchDetails,
    Continuation,
    OrderWriting,
    PlannedOrder,
    base_columns,
    build_tasks,
    combined_fingerprint,
    naming_order,
    request_fingerprint,
)
from broker.ordering.idempotency import FoundRecord, Idempotency
from broker.ordering.limits import OrderLimits
from broker.ordering.plan import Planner
from broker.ordering.references import ReferenceIntake, example_references
from broker.orders import (
    PRIORITIES,
    ImageParams,
    OrderRequest,
    Plan,
    Route,
    StoredReference,
    Turn,
)
from broker.tasks.policy import TaskPolicy
from broker.tasks.queries import TaskQueries
from broker.tasks.steps.arrivals import Arrival, Arrivals
from storage.batches import Batches
from storage.errors import Stale, StorageError
from storage.idempotency import IdempotencyRecord
from storage.ids import is_own_account, new_batch_id, provider_of, reference_owner
from storage.images import Images, StoredImage
from storage.sql.database import Database, Statement
from storage.sql.scope import Scope
from storage.states import LATE_RESULT_STATES, TaskState
from storage.tasks import Task, Tasks

MAX_WRITES: Final = 4
"""Tries to write an order, with its intent and without, while others change what is left of quotas and budget."""


class CreatedTasks(NamedTuple):
    """The durable tasks of one request."""

    tasks: tuple[Task, ...]
    is_repeated: bool = False
    """True if an earlier, equal request created them."""
    record: IdempotencyRecord | None = None
    answer: OpenAnswer | None = None
    """Set if the end of the answer is recorded."""


@dataclass(frozen=True, kw_only=True)
class OrderService:
    """Creates tasks, and describes what creating them would send."""

    clock: Clock
    policy: TaskPolicy
    database: Database
    tasks: Tasks
    images: Images
    batches: Batches
    queries: TaskQueries
    arrivals: Arrivals
    planner: Planner
    references: ReferenceIntake
    idempotency: Idempotency
    answers: OpenAnswers
    limits: OrderLimits
    callback_url: Callable[[str, str, int], str | None]
    """(provider, task, attempt) → the address that the provider calls."""
    image_base: Callable[[], str | None]
    """Where a provider reaches our images; None without a public URL."""
    metrics: Metrics

    def plan(self, caller: str, request: OrderRequest) -> Coroutine[Any, Any, Plan]:
        """Return the plan of a caller's request. Raises `ApiError` for a field that is wrong."""
        return self.planner.make_plan(caller, request)

    def create(
        self, caller: str, request: OrderRequest, plan: Plan, continuation: Continuation | None = None
    ) -> Coroutine[Any, Any, CreatedTasks]:
        """Create the durable tasks of a request, or return those of an equal earlier one. Raises `ApiError`."""
        orders = [PlannedOrder(request, plan)]
        if not request.is_identified:
            return self._create_new(caller, orders, None, None, continuation)
        return self.create_together(caller, orders, continuation=continuation)

    async def create_together(
        self,
        caller: str,
        orders: Sequence[PlannedOrder],
        details: BatchDetails | None = None,
        *,
        continuation: Continuation | None = None,
    ) -> CreatedTasks:
        """Create the durable tasks of several orders, all or none, or return those of an equal earlier request.

        The first one says how the request is identified. details: of a batch of different orders. continuation: what
        a single order continues.
        1. Find the idempotency record. 2. Where work precedes the transaction, check the limits, then the callback
        URLs. 3. Store the references. 4. Write tasks, references, record, rate usage and reservations in one
        transaction. Raises `ApiError`; then nothing is left.
        """
        found = await self._find_record(caller, orders, details) if orders[0].request.is_identified else None
        record, answer = (found.record, found.answer) if found else (None, None)
        try:
            if record is not None and record.batch:
                created = await self._repeat(record)
            else:
                created = await self._create_new(caller, orders, details, record, continuation)
        except BaseException:
            if answer is not None:
                await self.answers.leave(answer)
            raise
        return created if answer is None else created._replace(answer=answer)

    async def _create_new(
        self,
        caller: str,
        orders: Sequence[PlannedOrder],
        details: BatchDetails | None,
        record: IdempotencyRecord | None,
        continuation: Continuation | None,
    ) -> CreatedTasks:
        if continuation is not None:
            orders = [await continuation.complete(caller, order) for order in orders]
        quotes = [order.plan.quote for order in orders]
        has_work = details is not None or any(map(_has_work_before, orders))
        try:
            if has_work:
                await self.limits.check_order(caller, quotes)
            else:
                self.limits.check_possible(quotes)
        except ApiError as error:
            return await self._repeat_winner(record, error)
        if has_work:
            await self._check_callback_urls(orders, details)
        now = self.clock.now()
        batch = new_batch_id(now)
        try:
            references = await self._store_references(caller, batch, orders) if has_work else [()] * len(orders)
            now = self.clock.now() if has_work else now
            deadline_at, is_held = now + self.policy.queue_seconds, continuation is not None
            base = base_columns(caller, batch, created_at=now, deadline_at=deadline_at, is_held=is_held)
            writing = OrderWriting(
                tasks=build_tasks(orders, references, base, partial(self.limits.shares_of_task, caller)),
                references=[image for images in references for image in images] if has_work else (),
                record=replace(record, batch=batch) if record else None,
                quotes=quotes,
                details=details,
                continuation=continuation,
            )
            created = await self._write_and_begin(writing)
        except StorageError:  # the outcome is unknown; the sweep deletes files that belong to no task
            raise
        except Exception:
            await self._delete_references(batch, orders)
            raise
        if created.is_repeated:
            await self._delete_references(batch, orders)
            return created
        for order in orders:
            for provider, role in order.plan.roles:
                self.metrics.order_routes.labels(provider, role).inc(order.request.count)
        if continuation is not None:
            await continuation.begin(created.tasks)
        return created

    async def _check_callback_urls(self, orders: Sequence[PlannedOrder], details: BatchDetails | None) -> None:
        urls = [order.request.callback_url for order in orders] + [*(details.callback_urls if details else ())]
        for url in dict.fromkeys(urls):
            await self.planner.check_callback_url(url)

    async def _store_references(
        self, caller: str, batch: str, orders: Sequence[PlannedOrder]
    ) -> Sequence[Sequence[StoredImage]]:
        """Store the references of each order; their positions are counted over all of them."""
        stored, count, owner = list[list[StoredImage]](), 0, reference_owner(batch)
        for number, order in enumerate(orders, 1):
            if not order.request.sources:
                stored.append([])
                continue
            model = order.plan.order.params.model
            with naming_order(number, len(orders)):
                stored.append(await self.references.store(caller, owner, order.request, model, first=count))
            count += len(stored[-1])
        return stored

    async def _delete_references(self, batch: str, orders: Sequence[PlannedOrder]) -> None:
        sources = [source for order in orders for source in order.request.sources]
        await self.references.delete(reference_owner(batch), sources)

    async def dry_run(self, caller: str, request: OrderRequest, plan: Plan) -> dict[str, Any]:
        """Return the request that the provider would receive. Raises `ApiError` where `create` would.

        Reference images that were sent are validated and not stored; those at an address are not downloaded.
        """
        await self.limits.check_quota(caller, [plan.quote])
        await self.planner.check_callback_url(request.callback_url)
        await self.references.inspect(caller, request, plan.order.params.model)
        order = replace(plan.order, references=example_references(len(request.sources), self.image_base()))
        callback = self.callback_url(plan.candidates[0], "task_dry_run", 1)
        address = callback.split("?")[0] if callback else None
        provider = (await self.planner.accounts.find_usable(caller)).get(plan.candidates[0])
        if provider is None:
            raise ApiError("conflict", "Your own provider key was just removed: send the request again.")
        return {
            **provider.build_request(order, address),
            "warnings": list(plan.warnings),
            "ignored": list(plan.ignored),
            "routes": [_route_document(route) for route in plan.routes],
        }

    async def failed_request(self, task_id: str, scope: Scope) -> tuple[str, OrderRequest]:
        """Return caller and request of a failed task, to be created again; while that runs it is one new task.

        Raises `ApiError("conflict")` for a task that did not fail, or whose image is paid and may still arrive.
        """
        task = await self._last_retry(await self.queries.get(task_id, scope))
        if task.status not in {"failed", "canceled"}:
            which = "this one" if task.id == task_id else f"its last retry, {task.id},"
            raise ApiError("conflict", f"Only a failed or canceled task can be tried again: {which} is {task.status}.")
        if task.state in LATE_RESULT_STATES:
            raise ApiError("conflict", "The provider has this image, and we are still fetching it: look again later.")
        return task.caller, _request_of(task)

    async def _last_retry(self, task: Task) -> Task:
        """Return the last task of a chain of retries that each failed."""
        while (record := await self.idempotency.records.get(task.caller, _retry_key(task))) is not None:
            tasks = await self.tasks.list_of_batch(record.batch)
            if not tasks or not tasks[0].has_ended or tasks[0].state == TaskState.EXPIRED:
                return task
            task = tasks[0]
        return task

    async def _find_record(
        self, caller: str, orders: Sequence[PlannedOrder], details: BatchDetails | None
    ) -> FoundRecord:
        first = orders[0].request
        prints = [await request_fingerprint(order.request, order.plan.order) for order in orders]
        origins = [order.request.origin for order in orders]
        return await self.idempotency.find_record(
            caller,
            prints[0] if details is None else combined_fingerprint(prints, origins, details),
            key=first.idempotency_key,
            retry_count=first.retry_count or 0,
            retry_seconds=first.retry_seconds,
        )

    async def _write_and_begin(self, writing: OrderWriting) -> CreatedTasks:
        """Write everything in one transaction, or return the tasks of the request that was quicker.

        Repeated if what rate limit, quotas and budget allow changed between the check and the transaction, or if the
        provider has no capacity. Then begin the submissions here if nothing is before them, or else wake the workers.
        Raises `ApiError` if the orders do not fit in one of them.
        """
        arrival, created = await self.arrivals.take(writing.tasks), None
        try:
            for _ in range(MAX_WRITES):
                try:
                    statements = self._statements(writing, arrival, await self.limits.reserve_order(writing))
                    arrival.outcomes = await self.database.transact(*statements, wake=arrival.wake)
                    created = CreatedTasks(writing.tasks, record=writing.record)
                except Stale:
                    created = await self._find_written(writing, arrival)
                if created is not None:
                    break
            else:
                raise StorageError("the order could not be written")
        except BaseException:
            self.arrivals.abandon(arrival)
            raise
        if not created.is_repeated:
            _note_created(created.tasks)
        await self.arrivals.finish(arrival, is_written=not created.is_repeated)
        return created

    async def _find_written(self, writing: OrderWriting, arrival: Arrival) -> CreatedTasks | None:
        """Return the tasks of the request that was quicker, or these ones if they are written; None to write again.

        Raises `ApiError` if they do not fit any more.
        """
        first = writing.tasks[0]
        if (repeated := await self._find_winner(writing.record)) is not None:
            return repeated
        if await self.tasks.get(first.id) is not None:  # the connection broke after the commit: the second run failed
            return CreatedTasks(writing.tasks, record=writing.record)
        arrival.leave_intents()
        try:
            await self.limits.check_order(first.caller, writing.quotes, writing.needs, first.created_at)
        except ApiError as error:
            return await self._repeat_winner(writing.record, error)
        if writing.continuation is not None:
            await writing.continuation.check()
        return None

    def _statements(self, writing: OrderWriting, arrival: Arrival, reservations: list[Statement]) -> list[Statement]:
        # in this order: equal requests wait for each other at the record, before anything is counted
        statements = [self.idempotency.records.claim(writing.record)] if writing.record else []
        statements += reservations
        statements += map(self.tasks.insert_task, arrival.rows)
        statements += map(self.images.insert_image, writing.references)
        if writing.details is not None:
            statements.append(self.batches.insert_batch(writing.details.to_row(writing.tasks[0])))
        if writing.continuation is not None:
            statements += writing.continuation.statements(writing.tasks)
        return [*statements, *arrival.reservations]

    async def _find_winner(self, record: IdempotencyRecord | None) -> CreatedTasks | None:
        """Return the tasks of an equal request that was quicker; None if there was none."""
        if record is None:
            return None
        winner = await self.idempotency.get_record(record.caller, record.fingerprint, record.key)
        return await self._repeat(winner) if winner is not None and winner.batch not in {"", record.batch} else None

    async def _repeat_winner(self, record: IdempotencyRecord | None, error: ApiError) -> CreatedTasks:
        """Return the tasks of an equal request that was quicker: it may have used up what is refused. Or raise."""
        if (repeated := await self._find_winner(record)) is None:
            raise error
        return repeated

    async def _repeat(self, record: IdempotencyRecord) -> CreatedTasks:
        tasks = await self.tasks.list_of_batch(record.batch)
        if not tasks:
            raise ApiError("task_expired", "This Idempotency-Key was used for a task that is deleted. Use a new key.")
        return CreatedTasks(tasks=tuple(tasks), is_repeated=True, record=record)


def _has_work_before(order: PlannedOrder) -> bool:
    """Return whether references are stored or addresses are looked up before the transaction."""
    return bool(order.request.sources or order.request.callback_url)


def _note_created(tasks: Sequence[Task]) -> None:
    first, count = tasks[0], len(tasks)
    action = "task_created"
    log.note_change("order accepted", action=action, task=first.id, count=count, model=first.model, mode=first.mode)


def _route_document(route: Route) -> dict[str, Any]:
    """Return a route as callers see it, without the name of an account of their own."""
    account = route.provider
    return {**route.to_column(), "provider": provider_of(account), "own_key": is_own_account(account)}


def _retry_key(task: Task) -> str:
    """Return the idempotency key of a task's retry; a caller cannot send it, because it contains a space."""
    return f"retry {task.id}"


def _request_of(task: Task) -> OrderRequest:
    """Return the request that orders a task again."""
    return OrderRequest(
        params=ImageParams.from_columns(vars(task)),
        mode=task.mode,
        sources=tuple(StoredReference(blob=ref["blob"], sha256=ref["sha256"]) for ref in task.references),
        turns=tuple(Turn.from_column(turn) for turn in task.turns),
        origin=task.origin,
        priority=PRIORITIES[task.priority],
        provider=task.requested_provider,
        callback_url=task.callback_url,
        idempotency_key=_retry_key(task),
    )
