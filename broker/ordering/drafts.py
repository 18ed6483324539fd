"""The rows of an order, before they are written: one request is one order, or a batch of different ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from broker.errors import ApiError
from broker.ordering.quotas import OrderNeeds
from broker.ordering.references import hash_source
from broker.orders import DEFAULT_PRIORITY, PRIORITIES, Order, OrderRequest, Plan, Quote, Route
from storage.batches import StoredBatch
from storage.idempotency import IdempotencyRecord
from storage.ids import new_task_id
from storage.images import StoredImage
from storage.limits.owner_usage import counted_bytes
from storage.sql.database import Statement
from storage.sql.rows import changed_row, encode_once, new_row
from storage.tasks import Task


class PlannedOrder(NamedTuple):
    """One order of a request, and its plan."""

    request: OrderRequest
    plan: Plan


class Continuation(Protocol):
    """The conversation that a new order continues. Its tasks are held until `begin` lets them go."""

    async def complete(self, caller: str, order: PlannedOrder) -> PlannedOrder:
        """Return the order, planned with what it continues. Raises `ApiError`.

        It is called once it is certain that no equal request made the order before.
        """

    def statements(self, tasks: Sequence[Task]) -> Sequence[Statement]:
        """Return what is written together with the tasks."""

    async def check(self) -> None:
        """Raise `ApiError` if that is why the transaction changed nothing."""

    async def begin(self, tasks: Sequence[Task]) -> None:
        """Let the tasks go if they can; otherwise that follows later, whatever becomes of this process."""


@dataclass(frozen=True, kw_only=True)
class BatchDetails:
    """What a caller says about a batch of different orders."""

    dialect: str
    name: str
    model: str
    callback_urls: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_row(self, first: Task) -> StoredBatch:
        """first: the first task of the batch."""
        return StoredBatch(
            **vars(self), id=first.batch, caller=first.caller, created_at=first.created_at, updated_at=first.created_at
        )


@contextmanager
def naming_order(number: int, count: int) -> Iterator[None]:
    """Let an `ApiError` about one of several orders say which. number: from 1."""
    try:
        yield
    except ApiError as error:
        if count > 1:
            error.message = f"Request {number} of {count}: {error.message}"
        raise


class OrderWriting(NamedTuple):
    """What one transaction writes."""

    tasks: tuple[Task, ...]
    references: Sequence[StoredImage]
    record: IdempotencyRecord | None
    quotes: Sequence[Quote]
    details: BatchDetails | None
    continuation: Continuation | None

    @property
    def needs(self) -> OrderNeeds:
        """What the orders need of the quotas of their owner."""
        return OrderNeeds.from_quotes(self.quotes, sum(counted_bytes(image.size) for image in self.references))


def base_columns(caller: str, batch: str, *, created_at: float, deadline_at: float, is_held: bool) -> Mapping[str, Any]:
    """Return the columns that all tasks of a request have in common. is_held: as in `Task`."""
    return {
        "caller": caller,
        "batch": batch,
        "created_at": created_at,
        "updated_at": created_at,
        "entered_at": created_at,
        "due_at": deadline_at + 1.0 if is_held else created_at,
        "deadline_at": deadline_at,
    }


def build_tasks(
    orders: Sequence[PlannedOrder],
    references: Sequence[Sequence[StoredImage]],
    base: Mapping[str, Any],
    shares_of_task: Callable[[Quote], Mapping[str, Any]],
) -> tuple[Task, ...]:
    """Return the tasks of orders, in order. references: of each order.

    base: as in `base_columns`. shares_of_task: the columns of its reservations.
    """
    now = base["created_at"]
    new = [new_task_id(now) for order in orders for _ in range(order.request.count)]
    ids = iter(sorted(new))  # the order of reading
    tasks: list[Task] = []
    for order, images in zip(orders, references, strict=True):
        request, plan = order.request, order.plan
        draft: Task = plan.draft
        columns = {
            **base,
            **shares_of_task(plan.quote),
            "prompt": plan.order.params.prompt,
            "references": tuple(map(reference_columns, images)),
            "origin": request.origin,
            "callback_url": request.callback_url,
        }
        for _ in range(request.count):
            columns["id"] = next(ids)
            tasks.append(changed_row(draft, columns))
    return tuple(tasks)


_UNDRAFTED: Final = {
    "id": "",
    **base_columns("", "", created_at=0.0, deadline_at=0.0, is_held=False),
    "prompt": "",
}
"""Columns without a default, which `build_tasks` sets."""


def draft_task(request: OrderRequest, order: Order, candidates: tuple[str, ...], routes: tuple[Route, ...]) -> Task:
    """Return a task with the columns that depend on the plan of a request alone: not the prompt, not the moments."""
    columns = {
        **account_columns(candidates, routes),
        **order.params.to_columns(),
        "requested_provider": request.provider,
        "priority": PRIORITIES.index(request.priority),
        "mode": order.mode,
        "turns": encode_once([turn.to_column() for turn in order.turns]),
    }
    return new_row(Task, {**columns, **_UNDRAFTED})


@lru_cache(maxsize=1024)
def account_columns(candidates: tuple[str, ...], routes: tuple[Route, ...]) -> Mapping[str, Any]:
    """Return the columns of a task that say which accounts may get it, made once for all tasks with these routes."""
    columns = tuple(route.to_column() for route in routes)
    return {"provider": candidates[0], "candidates": encode_once(candidates), "routes": encode_once(columns)}


def reference_columns(image: StoredImage) -> dict[str, Any]:
    """Return the entry of a reference in a task."""
    names = ("name", "blob", "media_type", "size", "sha256")
    return {name: getattr(image, name) for name in names}


async def request_fingerprint(request: OrderRequest, order: Order) -> str:
    """Return the hash of what makes two requests equal: the order, its references, its dialect and the other fields."""
    others = {
        "callback_url": request.callback_url,
        "provider": request.provider,
        "dialect": request.origin.get("dialect"),
        "conversation": request.conversation,
    }
    if request.priority != DEFAULT_PRIORITY:
        others["priority"] = request.priority
    chosen = {name: value for name, value in others.items() if value}
    references = [await hash_source(source) for source in request.sources]
    made = {
        "params": vars(order.params),
        "mode": order.mode,
        "turns": [asdict(turn) for turn in order.turns],
        "priority": order.priority,
    }
    content = {**made, "references": references, "count": request.count, **chosen}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def combined_fingerprint(prints: Sequence[str], origins: Sequence[Mapping[str, Any]], details: BatchDetails) -> str:
    """Return the hash of what makes two batches equal: the fingerprints and origins of their orders, and the details.

    The origins have what the caller said about each order, to find its answer by it.
    """
    content = json.dumps({"orders": prints, "origins": [*origins], **vars(details)}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
