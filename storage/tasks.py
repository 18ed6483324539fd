"""Task rows, and the statements that lease and change them.

A row says what happens next and when: `(state, due_at)`. `version` is the fence: a change names the version that it was
computed from, and fails if the row has a newer one. A lease (`leased_by`, `lease_until`) only keeps two workers from
running the same step at once; losing it costs nothing but that step's time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from storage.ids import owner_key
from storage.sql.database import Database, Statement
from storage.sql.rows import (
    fetch_as,
    fetch_one_as,
    from_row,
    insert_row,
    set_clause,
    to_columns,
)
from storage.states import ENDED_STATUSES, TaskState, public_status

DUE_CHANNEL = "due"
"""Channel that wakes workers."""


@lru_cache(maxsize=256)
def _update_text(names: tuple[str, ...]) -> str:
    return f"UPDATE tasks SET {set_clause(names)}version = version + 1 WHERE id = :id AND version = :version"


def task_channel(task_id: str) -> str:
    """Return the channel that wakes long polls and event streams of one task."""
    return f"task:{task_id}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One ordered image. Moments (`_at`) are seconds since the epoch.

    batch: shared by the tasks of one request; owns its references. attempt: number of the current
    attempt, 0 before the first. step_retries: retries of the step of this state. expects_callback: a callback may
    come, because the provider got a URL that still leads here. key_id: key of the current attempt, empty before it.
    candidates: providers that may serve it, the current one first. routes: what the router made of each provider at the
    order, and each move to another one later; opaque to storage. priority: 0 low, 1 normal, 2 high, among the
    caller's own tasks. references: as stored. turns: the conversation that the order continues. origin: what the
    dialect of the order keeps about it; both opaque to storage. outputs: results, in order: URLs, or `stored:` and the
    name of a blob. texts: written by the model beside the images. turn: the model's turn as its provider must get it
    back. callback_url: receives the webhook of the end; may hold a secret. deadline_at: end of the time for this
    state. ended_at: when an end was first shown to the caller. cost, cost_usd: of the result, in its provider's unit
    and in USD. reserved: its part of the daily budget when it was created, in millionths of a USD, replaced in the
    database when it ends; None without a budget. owner_images, owner_micros: what it counts as in the usage of its
    owner, in images and in millionths of a USD, replaced in the same way; None if its owner has no quotas.
    entered_at: when it came into this state. sent_at, finished_at: when the current attempt was submitted, and when its
    result was ready. provider_state, provider_percent: the provider's own word for its progress, if it has any.
    """

    id: str
    batch: str
    caller: str
    state: TaskState = TaskState.QUEUED
    due_at: float
    lease_until: float = 0.0
    leased_by: str = ""
    version: int = 1
    provider: str
    key_id: str = ""
    candidates: tuple[str, ...] = ()
    requested_provider: str | None = None
    """The provider that the request named; None if it named none."""
    routes: tuple[Mapping[str, Any], ...] = ()
    priority: int = 1
    model: str
    mode: str
    prompt: str
    aspect_ratio: str | None = None
    resolution: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that are never queried; opaque to storage."""
    references: tuple[Mapping[str, Any], ...] = ()
    turns: tuple[Mapping[str, Any], ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 0
    step_retries: int = 0
    job_id: str | None = None
    expects_callback: bool = False
    outputs: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    turn: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    """As in the provider's report; opaque to storage."""
    deadline_at: float
    checked_at: float = 0.0
    callback_url: str | None = None
    error_code: str | None = None
    error_detail: str | None = None
    error_retryable: bool = False
    billed: str = "no"
    provider_code: str | None = None
    cost: float | None = None
    cost_usd: float | None = None
    reserved: int | None = None
    owner_images: int | None = None
    owner_micros: int | None = None
    created_at: float
    updated_at: float
    ended_at: float | None = None
    entered_at: float
    sent_at: float | None = None
    finished_at: float | None = None
    provider_state: str | None = None
    provider_percent: float | None = None
    pinned_at: float | None = None
    """When its caller asked to keep it beyond retention; None: it is deleted by retention."""

    @property
    def status(self) -> str:
        return public_status(self.state, attempt=self.attempt, ended_at=self.ended_at)

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED_STATUSES

    def expires_at(self, retention_seconds: float) -> float | None:
        """Return when retention deletes it; None while that is not known: before its end, and while it is pinned."""
        return None if self.ended_at is None or self.pinned_at is not None else self.ended_at + retention_seconds

    @property
    def is_held(self) -> bool:
        """True for one that is not to be submitted yet: it waits for another task, until its deadline at most."""
        return self.state == TaskState.QUEUED and self.due_at > self.deadline_at


_UNSET_WHEN_SUBMITTED: Final = (
    *("job_id", "step_retries", "outputs", "texts", "turn", "tokens", "checked_at", "error_code", "error_detail"),
    *("error_retryable", "billed", "provider_code", "cost", "cost_usd", "ended_at", "finished_at"),
    *("provider_state", "provider_percent", "pinned_at"),
)
"""What the steps after the submission write."""
_UNSET_WHEN_QUEUED: Final = (
    *("state", "lease_until", "leased_by", "version", "key_id", "attempt", "expects_callback", "sent_at"),
    *_UNSET_WHEN_SUBMITTED,
)


@dataclass(frozen=True, kw_only=True)
class TaskDurations:
    """Durations of one image in seconds: from submission to the provider's result, and from there to its end here."""

    resolution: str | None
    provider_seconds: float
    download_seconds: float


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Lease of one claim. holder: its unique name. until: when other workers may take over."""

    holder: str
    until: float


@dataclass(frozen=True, kw_only=True)
class DueWork:
    """Moments at which work is due; `inf` where there is none.

    due: by state, the next step of a task without a lease. queued: by provider, the next submission. has_own_lanes: a
    task is queued for an account of a user. queue_deadline_at: the first deadline of a queued task. has_callbacks: one
    waits to be processed. delivery_at: the next webhook.
    """

    due: Mapping[TaskState, float]
    queued: Mapping[str, float]
    has_own_lanes: bool
    queue_deadline_at: float
    has_callbacks: bool
    delivery_at: float


@dataclass(frozen=True)
class Tasks:
    """Tasks in the database."""

    database: Database

    # -- reading

    async def get(self, task_id: str) -> Task | None:
        return await fetch_one_as(self.database, Task, "SELECT * FROM tasks WHERE id = :id", id=task_id)

    async def get_by_job(self, job_id: str) -> Task | None:
        """Return the task of a provider's job, current or earlier."""
        sql = "SELECT t.* FROM attempts a JOIN tasks t ON t.id = a.task_id WHERE a.job_id = :job LIMIT 1"
        return await fetch_one_as(self.database, Task, sql, job=job_id)

    async def list_of_owner(self, owner: str) -> list[Task]:
        """Return the unexpired tasks that use the files of an owner."""
        column, value = owner_key(owner)
        sql = f"SELECT * FROM tasks WHERE {column} = :value AND state <> 'expired' ORDER BY created_at, id"
        return await fetch_as(self.database, Task, sql, value=value)

    async def list_of_batch(self, batch: str) -> list[Task]:
        sql = "SELECT * FROM tasks WHERE batch = :batch ORDER BY created_at, id"
        return await fetch_as(self.database, Task, sql, batch=batch)

    async def count_by_state(self, states: Iterable[TaskState] = TaskState, *, at_most: int = 2**62) -> dict[str, int]:
        """Count rows by state, up to a number. Reads so many entries of the index, so cache the result."""
        counted = (
            "SELECT '{0}' AS state, count(*) AS n FROM (SELECT 1 AS one FROM tasks WHERE state = '{0}' LIMIT :n) AS c"
        )
        sql = " UNION ALL ".join(counted.format(state.value) for state in states)
        return {row["state"]: row["n"] for row in await self.database.fetch(sql, n=at_most) if row["n"]}

    async def recent_durations(self, provider: str, model: str) -> list[TaskDurations]:
        """Return the durations of the newest images of a model, newest first; at most 100."""
        return await fetch_as(
            self.database,
            TaskDurations,
            """SELECT resolution, finished_at - sent_at AS provider_seconds,
                ended_at - finished_at AS download_seconds FROM tasks
                WHERE state = 'succeeded' AND provider = :provider AND model = :model
                AND finished_at IS NOT NULL AND sent_at IS NOT NULL ORDER BY ended_at DESC LIMIT 100""",
            provider=provider,
            model=model,
        )

    # -- leasing

    async def claim(self, state: TaskState, *, now: float, lease: Lease, limit: int) -> list[Task]:
        """Lease up to `limit` tasks whose next step in this state is due, the most overdue first."""
        which = "state = :state AND due_at <= :now ORDER BY due_at"
        return await self._claim_rows(which, state=state.value, now=now, lease=lease, limit=limit)

    async def claim_overdue(self, *, now: float, lease: Lease, limit: int) -> list[Task]:
        """Lease queued tasks whose deadline is over."""
        which = "state = 'queued' AND deadline_at <= :now ORDER BY deadline_at"
        return await self._claim_rows(which, now=now, lease=lease, limit=limit)

    async def _claim_rows(self, which: str, *, now: float, lease: Lease, limit: int, **params: Any) -> list[Task]:
        which = which.replace("ORDER BY", "AND (lease_until <= :now OR leased_by = :holder) ORDER BY")
        sql = f"""due AS MATERIALIZED (SELECT id FROM tasks
            WHERE {which} LIMIT :limit{self.database.skip_locked})"""
        return await claim_rows(self.database, sql, now=now, lease=lease, limit=limit, **params)

    async def renew(self, held: Sequence[tuple[str, str]], until: float) -> None:
        """Extend the leases (task id, holder) of running steps; lost and released leases stay so."""
        sql = "UPDATE tasks SET lease_until = :until WHERE id = :id AND leased_by = :holder"
        params = [{"id": task_id, "holder": holder, "until": until} for task_id, holder in held]
        await self.database.transact(*(Statement(sql=sql, params=one) for one in params))

    async def awaiting_callback(self, before: float, limit: int) -> list[Task]:
        """Return tasks that await the callback of an attempt sent before a moment, next due first."""
        sql = """SELECT * FROM tasks WHERE state = 'waiting' AND expects_callback = 1
            AND (SELECT sent_at FROM attempts WHERE task_id = tasks.id AND number = tasks.attempt) < :before
            ORDER BY due_at LIMIT :limit"""
        return await fetch_as(self.database, Task, sql, before=before, limit=limit)

    async def get_due_work(
        self, states: Sequence[TaskState], providers: Sequence[str], now: float, *, callbacks_in_hand: int = 0
    ) -> DueWork:
        """Return in one query when the next work of each kind is due. callbacks_in_hand: that the caller processes."""
        free = "lease_until <= :now"
        queue = f"FROM tasks WHERE state = 'queued' AND {free}"
        numbered = {f"p{number}": provider for number, provider in enumerate(providers)}
        queries = [
            f"(SELECT due_at FROM tasks WHERE state = '{s}' AND {free} ORDER BY due_at LIMIT 1) AS {s}" for s in states
        ]
        queries += [
            f"(SELECT due_at {queue} AND provider = :{name} ORDER BY due_at, id LIMIT 1) AS {name}" for name in numbered
        ]
        row: Any = await self.database.fetch_one(
            f"""SELECT {", ".join(queries)},
                (SELECT deadline_at {queue} ORDER BY deadline_at LIMIT 1) AS deadline,
                (SELECT 1 FROM tasks WHERE state = 'queued' AND provider LIKE '%@%' LIMIT 1) AS own_lane,
                (SELECT due_at FROM deliveries WHERE due_at IS NOT NULL AND {free} ORDER BY due_at LIMIT 1) AS delivery,
                (SELECT 1 FROM callbacks WHERE processed_at IS NULL AND task_id IS NOT NULL
                    LIMIT 1 OFFSET :in_hand) AS callback""",
            now=now,
            in_hand=callbacks_in_hand,
            **numbered,
        )
        due_at = {name: math.inf if value is None else value for name, value in row.items()}
        return DueWork(
            due={state: due_at[state] for state in states},
            queued={provider: due_at[name] for name, provider in numbered.items()},
            has_own_lanes=row["own_lane"] is not None,
            queue_deadline_at=due_at["deadline"],
            has_callbacks=row["callback"] is not None,
            delivery_at=due_at["delivery"],
        )

    # -- changing: statements for a transaction

    def insert_task(self, task: Task) -> Statement:
        return insert_row("tasks", task, unset=_UNSET_WHEN_SUBMITTED if task.leased_by else _UNSET_WHEN_QUEUED)

    def update_task(self, task: Task, **changes: Any) -> Statement:
        """Change the row if it still has the version of `task`; otherwise `Stale`."""
        values = to_columns(changes)
        values["id"], values["version"] = task.id, task.version
        return Statement(_update_text(tuple(changes)), values, must_change=True)

    def lock_task(self, task_id: str, state: TaskState) -> Statement:
        """Lock the task in this state until the transaction ends; `Stale` if it is in another one."""
        return Statement(
            sql="UPDATE tasks SET version = version WHERE id = :id AND state = :state",
            params={"id": task_id, "state": state.value},
            must_change=True,
        )

    def lock_batch(self, batch: str) -> Statement:
        """Lock the first task of a batch until the transaction ends. It comes before all other locks."""
        return Statement(
            sql="UPDATE tasks SET version = version WHERE id = (SELECT min(id) FROM tasks WHERE batch = :batch)",
            params={"batch": batch},
            must_change=True,
        )

    def check_ended(self, task: Task, others: int) -> Statement:
        """Raise `Stale` unless so many other tasks of the batch have ended. Its own statement, to see what is new."""
        return Statement(
            sql="""UPDATE tasks SET version = version WHERE id = :id AND :others = (
                SELECT count(*) FROM tasks WHERE batch = :batch AND id <> :id AND ended_at IS NOT NULL)""",
            params={"id": task.id, "batch": task.batch, "others": others},
            must_change=True,
        )

    def check_pins(self, task: Task, limit: int) -> Statement:
        """Raise `Stale` if the owner of a task has `limit` other pinned tasks and conversations already.

        Its own statement, to see what is new: in one transaction it follows `lock_owner_account` of that owner, which
        makes transactions that pin for one owner wait for each other.
        """
        return Statement(
            sql="""UPDATE tasks SET version = version WHERE id = :id AND :limit > (
                (SELECT count(*) FROM tasks WHERE caller = :caller AND pinned_at IS NOT NULL AND id <> :id)
                + (SELECT count(*) FROM conversations WHERE owner = :caller AND pinned_at IS NOT NULL))""",
            params={"id": task.id, "caller": task.caller, "limit": limit},
            must_change=True,
        )

    def lock_owner(self, owner: str) -> Statement:
        """Lock the task, or the tasks of the batch, that own these files until the transaction ends.

        `Stale` if all are expired.
        """
        column, value = owner_key(owner)
        return Statement(
            sql=f"UPDATE tasks SET version = version WHERE {column} = :value AND state <> 'expired'",
            params={"value": value},
            must_change=True,
        )


async def claim_rows(
    database: Database, due: str, *, now: float, lease: Lease, limit: int, **params: Any
) -> list[Task]:
    """Lease the tasks whose ids the common table expression `due` selects.

    It selects free tasks, or those of the same holder: the second run of a claim after a commit whose end was unknown.
    """
    if limit <= 0:
        return []
    # materialized: chosen and locked once, however the update is carried out
    sql = f"""WITH {due} UPDATE tasks SET leased_by = :holder, lease_until = :until, version = version + 1
        WHERE id IN (SELECT id FROM due) RETURNING *"""
    all_params = {"now": now, "holder": lease.holder, "until": lease.until, "limit": limit, **params}
    (outcome,) = await database.transact(Statement(sql=sql, params=all_params))
    return [from_row(Task, row) for row in outcome.rows]
