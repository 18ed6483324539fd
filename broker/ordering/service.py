"""Order service: turns a planned request into durable tasks, exactly once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from broker.clock import Clock
from broker.errors import ApiError
from broker.logs import log
from broker.metrics import Metrics
from broker.ordering.answers import OpenAnswer, OpenAnswers
from broker.ordering.budgets import DailyBudget
from broker.ordering.idempotency import FoundRecord, Idempotency
from broker.ordering.plan import Planner
from broker.ordering.rate_limit import RateLimiter
from broker.ordering.references import ReferenceIntake, hash_source
from broker.orders import (
    DEFAULT_PRIORITY,
    PRIORITIES,
    ImageParams,
    Order,
    OrderRequest,
    Plan,
    Quote,
    Reference,
    StoredReference,
    Turn,
)
from broker.providers.base import Provider
from broker.tasks.policy import TaskPolicy
from broker.tasks.queries import TaskQueries
from storage.errors import StorageError
from storage.idempotency import IdempotencyRecord
from storage.ids import new_batch_id, new_task_id, reference_owner
from storage.images import Images, StoredImage
from storage.sql.database import Database, Stale
from storage.states import LATE_RESULT_STATES, TaskState
from storage.tasks import DUE_CHANNEL, Task, Tasks

MAX_WRITES: Final = 3
"""Tries to write an order while others change what is left of the budget."""


@dataclass(frozen=True, kw_only=True)
class CreatedTasks:
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
    queries: TaskQueries
    planner: Planner
    references: ReferenceIntake
    idempotency: Idempotency
    answers: OpenAnswers
    limiter: RateLimiter
    budget: DailyBudget
    providers: Mapping[str, Provider]
    callback_url: Callable[[str, str, int], str | None]
    """(provider, task, attempt) → the address that the provider calls."""
    image_base: Callable[[], str | None]
    """Where a provider reaches our images; None without a public URL."""
    metrics: Metrics

    async def plan(self, request: OrderRequest) -> Plan:
        """Return the plan of a request. Raises `ApiError` for a field that is wrong."""
        return await self.planner.make_plan(request)

    async def create(self, caller: str, request: OrderRequest, plan: Plan) -> CreatedTasks:
        """Create the durable tasks of a request, or return those of an equal earlier one.

        1. Find the idempotency record. 2. Check the rate limit, the budget and the callback URL. 3. Store the
        references. 4. Write tasks, references, record, rate usage and reservation in one transaction. Raises
        `ApiError`; then nothing is left.
        """
        found = await self._find_record(caller, request, plan.order)
        record, answer = (found.record, found.answer) if found else (None, None)
        try:
            created = await self._create_or_repeat(caller, request, plan, record)
        except BaseException:
            if answer is not None:
                await self.answers.leave(answer)
            raise
        return replace(created, answer=answer)

    async def _create_or_repeat(
        self, caller: str, request: OrderRequest, plan: Plan, record: IdempotencyRecord | None
    ) -> CreatedTasks:
        if record is not None and record.batch:
            return await self._repeat(record)
        await self.limiter.check_allowance(caller, request.count)
        await self.budget.check(plan.quote)
        await self.planner.check_callback_url(request.callback_url)
        batch = new_batch_id()
        owner = reference_owner(batch)
        try:
            references = await self.references.store(caller, owner, request, plan.order.params.model)
            tasks = self._build_tasks(caller, request, plan, batch, references)
            created = await self._write(tasks, references, replace(record, batch=batch) if record else None, plan.quote)
        except StorageError:  # the outcome is unknown; the sweep deletes files that belong to no task
            raise
        except Exception:
            await self.references.delete(owner, request.sources)
            raise
        if created.is_repeated:
            await self.references.delete(owner, request.sources)
        else:
            self._count_routes(plan, request.count)
        return created

    def _count_routes(self, plan: Plan, images: int) -> None:
        for route in plan.routes:
            role = "first" if route.provider == plan.candidates[0] else "other" if route.is_candidate else "excluded"
            self.metrics.order_routes.labels(route.provider, role).inc(images)

    async def dry_run(self, caller: str, request: OrderRequest, plan: Plan) -> dict[str, Any]:
        """Return the request that the provider would receive. Raises `ApiError` where `create` would.

        Reference images that were sent are validated and not stored; those at an address are not downloaded.
        """
        await self.budget.check(plan.quote)
        await self.planner.check_callback_url(request.callback_url)
        await self.references.inspect(caller, request, plan.order.params.model)
        order = replace(plan.order, references=_example_references(len(request.sources), self.image_base()))
        callback = self.callback_url(plan.candidates[0], "task_dry_run", 1)
        address = callback.split("?")[0] if callback else None
        return {
            **self.providers[plan.candidates[0]].build_request(order, address),
            "warnings": list(plan.warnings),
            "ignored": list(plan.ignored),
            "routes": [route.to_column() for route in plan.routes],
        }

    async def failed_request(self, task_id: str) -> tuple[str, OrderRequest]:
        """Return caller and request of a failed task, to be created again; while that runs it is one new task.

        Raises `ApiError("conflict")` for a task that did not fail, or whose image is paid and may still arrive.
        """
        task = await self._last_retry(await self.queries.get(task_id))
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

    async def _find_record(self, caller: str, request: OrderRequest, order: Order) -> FoundRecord | None:
        if request.idempotency_key is None and request.retry_count is None and request.answer_seconds is None:
            return None
        return await self.idempotency.find_record(
            caller,
            await request_fingerprint(request, order),
            key=request.idempotency_key,
            retry_count=request.retry_count or 0,
            answer_seconds=request.answer_seconds,
        )

    def _build_tasks(
        self, caller: str, request: OrderRequest, plan: Plan, batch: str, references: Sequence[StoredImage]
    ) -> tuple[Task, ...]:
        now, order = self.clock.now(), plan.order
        ids = sorted(new_task_id() for _ in range(request.count))  # the order of reading
        return tuple(
            Task(
                id=task_id,
                batch=batch,
                caller=caller,
                due_at=now,
                provider=plan.candidates[0],
                candidates=plan.candidates,
                pinned=request.provider,
                routes=tuple(route.to_column() for route in plan.routes),
                priority=PRIORITIES.index(request.priority),
                reserved=self.budget.share_of_task(plan.quote),
                mode=order.mode,
                **order.params.to_columns(),
                references=tuple(_reference_columns(reference) for reference in references),
                turns=tuple(turn.to_column() for turn in order.turns),
                origin=request.origin,
                callback_url=request.callback_url,
                deadline_at=now + self.policy.queue_seconds,
                created_at=now,
                updated_at=now,
                entered_at=now,
            )
            for task_id in ids
        )

    async def _write(
        self,
        tasks: tuple[Task, ...],
        references: Sequence[StoredImage],
        record: IdempotencyRecord | None,
        quote: Quote,
    ) -> CreatedTasks:
        """Write everything in one transaction, or return the tasks of the request that was quicker.

        Repeated if what the rate limit and the budget allow changed between the check and the transaction. Raises
        `ApiError` if the order does not fit in either.
        """
        first = tasks[0]
        # in this order: equal requests wait for each other at the record, before anything is counted
        statements = [self.idempotency.records.claim(record)] if record else []
        statements.append(self.limiter.acquire(first.caller, len(tasks)))
        statements += self.budget.reserve(quote, first.created_at)
        statements += [self.tasks.insert_task(task) for task in tasks]
        statements += [self.images.insert_image(reference) for reference in references]
        for _ in range(MAX_WRITES):
            try:
                await self.database.transact(*statements, wake=(DUE_CHANNEL,))
            except Stale:
                if (repeated := await self._find_winner(record)) is not None:
                    return repeated
                if await self.tasks.get(first.id) is not None:
                    break  # the connection broke after the commit, and the second run was rejected
                await self.limiter.check_allowance(first.caller, len(tasks))
                await self.budget.check(quote)
            else:
                break
        else:
            raise StorageError("the order could not be written")
        log.info(
            "order accepted",
            action="task_created",
            task=first.id,
            count=len(tasks),
            model=first.model,
            mode=first.mode,
        )
        return CreatedTasks(tasks=tasks, record=record)

    async def _find_winner(self, record: IdempotencyRecord | None) -> CreatedTasks | None:
        """Return the tasks of an equal request that was quicker; None if there was none."""
        if record is None:
            return None
        winner = await self.idempotency.get_record(record.caller, record.fingerprint, record.key)
        return await self._repeat(winner) if winner is not None and winner.batch not in {"", record.batch} else None

    async def _repeat(self, record: IdempotencyRecord) -> CreatedTasks:
        tasks = await self.tasks.list_of_batch(record.batch)
        if not tasks:
            raise ApiError("task_expired", "This Idempotency-Key was used for a task that is deleted. Use a new key.")
        return CreatedTasks(tasks=tuple(tasks), is_repeated=True, record=record)


async def request_fingerprint(request: OrderRequest, order: Order) -> str:
    """Return the hash of what makes two requests equal: the order, its references and the other fields."""
    others = {"callback_url": request.callback_url, "provider": request.provider}
    if request.priority != DEFAULT_PRIORITY:
        others["priority"] = request.priority
    chosen = {name: value for name, value in others.items() if value}
    references = [await hash_source(source) for source in request.sources]
    content = {**asdict(order), "references": references, "count": request.count, **chosen}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        provider=task.pinned,
        callback_url=task.callback_url,
        idempotency_key=_retry_key(task),
    )


def _reference_columns(image: StoredImage) -> dict[str, Any]:
    names = ("name", "blob", "media_type", "size", "sha256")
    return {name: getattr(image, name) for name in names}


def _example_references(count: int, base: str | None) -> tuple[Reference, ...]:
    return tuple(
        Reference(
            name=f"reference-{number}",
            media_type="image/png",
            size=0,
            sha256="",
            url=f"{base}/uploads/references/reference-{number}" if base else None,
            read=_no_bytes,
        )
        for number in range(1, count + 1)
    )


async def _no_bytes() -> AsyncIterator[bytes]:
    for chunk in list[bytes]():
        yield chunk
