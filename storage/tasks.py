"""The task row: its states, its ledger of attempts, and the statements that lease and change it together.

    QUEUED ──► SUBMITTING ──► WAITING ──► FETCHING ──► SUCCEEDED ──► EXPIRED ──► (row gone)
      ▲            │   │         │  ▲        │
      │            │   │         │  └─ the provider says: not yet
      │            │   │         └──► QUEUED   told Failed, worth another attempt
      └─ refused ──┘   └─ Finished at once, or the callback was quicker ──► FETCHING
    first four ──► FAILED (told for good, deadline, result gone)     first three ──► CANCELED
    FAILED, CANCELED ──► EXPIRED
    FAILED ──► FETCHING                  the success came late, and is still welcome
    FAILED(unknown_outcome) ──► WAITING  the job turned up, and can be asked about; both go on being shown as failed

A row says what happens next and when: `(state, due_at)`. `version` is the fence: whoever changes the row names the
version it saw, and loses if somebody was quicker. A lease (`leased_by`, `lease_until`) only keeps two workers from
doing the same step at once; losing it costs nothing but that step's time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from storage.database import Database, Row, Statement

DUE = "due"
"""The channel that wakes workers."""


def task_channel(task_id: str) -> str:
    """The channel that wakes those who wait for one task."""
    return f"task:{task_id}"


class State(StrEnum):
    QUEUED = "queued"
    SUBMITTING = "submitting"
    WAITING = "waiting"
    FETCHING = "fetching"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


LANDING = frozenset({State.WAITING, State.FETCHING})
"""States in which a task may be after its caller was told that it failed: its image may still come."""

SHOWN = {
    "pending": "state = 'queued' AND attempt = 0",
    "processing": """ended_at IS NULL AND
        (state IN ('submitting', 'waiting', 'fetching') OR (state = 'queued' AND attempt > 0))""",
    "completed": "state = 'succeeded'",
    "failed": "(state = 'failed' OR (state IN ('waiting', 'fetching') AND ended_at IS NOT NULL))",
    "canceled": "state = 'canceled'",
}
"""Public status → which rows show it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One image, ordered by somebody. Moments (`_at`) are seconds since the epoch.

    batch: id of the first task of the same request; its references belong to it. attempt: number of the current
    attempt, 0 before the first. tries: how often the step of this state was tried. hooked: whether the provider
    knows a callback address. refs: the references, as stored. outputs: result URLs, in order. deadline_at: when
    patience with this state ends. ended_at: when the caller was first told an end.
    """

    id: str
    batch: str
    caller: str
    state: State = State.QUEUED
    due_at: float
    lease_until: float = 0.0
    leased_by: str = ""
    version: int = 1
    provider: str
    model: str
    mode: str
    prompt: str
    aspect_ratio: str | None = None
    resolution: str | None = None
    output_format: str | None = None
    steps: int | None = None
    seed: int | None = None
    refs: tuple[Mapping[str, Any], ...] = ()
    attempt: int = 0
    tries: int = 0
    job_id: str | None = None
    hooked: bool = False
    outputs: tuple[str, ...] = ()
    deadline_at: float
    checked_at: float = 0.0
    error_code: str | None = None
    error_detail: str | None = None
    error_retryable: bool = False
    billed: str = "no"
    provider_code: str | None = None
    cost: float | None = None
    created_at: float
    updated_at: float
    ended_at: float | None = None

    @property
    def status(self) -> str:
        """What callers are shown. It never goes back: not from failed before the image is here, nor into the queue."""
        if self.state in LANDING and self.ended_at is not None:
            return "failed"
        if self.state == State.QUEUED and self.attempt > 0:
            return "processing"
        return _STATUS[self.state]

    @property
    def ended(self) -> bool:
        return self.status in {"completed", "failed", "canceled", "expired"}


_STATUS = {
    State.QUEUED: "pending",
    State.SUBMITTING: "processing",
    State.WAITING: "processing",
    State.FETCHING: "processing",
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.CANCELED: "canceled",
    State.EXPIRED: "expired",
}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One line of the ledger: a request that could cost something, and what became of it.

    outcome: `sent`, `accepted`, `refused`, `failed`, `succeeded` or `unknown`. spare: a second success, kept as JSON.
    """

    task_id: str
    number: int
    provider: str
    job_id: str | None = None
    sent_at: float
    ended_at: float | None = None
    outcome: str = "sent"
    code: str | None = None
    provider_code: str | None = None
    billed: str = "unknown"
    cost: float | None = None
    spare: str | None = None


_JSON = ("refs", "outputs")
_BOOLS = ("hooked", "error_retryable")
_COLUMNS = tuple(f.name for f in fields(Task))
_INSERT = f"INSERT INTO tasks ({', '.join(_COLUMNS)}) VALUES ({', '.join(':' + c for c in _COLUMNS)})"


def _to_row(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _to_column(name, value) for name, value in values.items()}


def _to_column(name: str, value: Any) -> Any:
    if name in _JSON:
        return json.dumps(value, ensure_ascii=False)
    if name in _BOOLS:
        return int(value)
    return value.value if isinstance(value, State) else value


def _to_task(row: Row) -> Task:
    return Task(**{name: _from_column(name, row[name]) for name in _COLUMNS})


def _from_column(name: str, value: Any) -> Any:
    if name in _JSON:
        return tuple(json.loads(value))
    if name in _BOOLS:
        return bool(value)
    return State(value) if name == "state" else value


@dataclass(frozen=True, kw_only=True)
class Lease:
    """holder: unlike any other claim's. until: when others may take over."""

    holder: str
    until: float


@dataclass(frozen=True)
class Tasks:
    """Tasks at rest."""

    database: Database

    # -- reading

    async def get(self, task_id: str) -> Task | None:
        row = await self.database.point("SELECT * FROM tasks WHERE id = :id", id=task_id)
        return _to_task(row) if row else None

    async def version(self, task_id: str) -> int | None:
        """The row's version alone: what a poll needs to know whether its answer is still the same."""
        row = await self.database.point("SELECT version FROM tasks WHERE id = :id", id=task_id)
        return int(row["version"]) if row else None

    async def of_job(self, job_id: str) -> Task | None:
        """The task that has, or had, this job at a provider."""
        row = await self.database.point(
            "SELECT t.* FROM attempts a JOIN tasks t ON t.id = a.task_id WHERE a.job_id = :job LIMIT 1", job=job_id
        )
        return _to_task(row) if row else None

    async def of_batch(self, batch: str) -> list[Task]:
        rows = await self.database.fetch(
            "SELECT * FROM tasks WHERE batch = :batch ORDER BY created_at, id", batch=batch
        )
        return [_to_task(row) for row in rows]

    async def newest(self, *, status: str | None, limit: int, before: tuple[float, str] | None) -> list[Task]:
        """One page, newest first; `before` is (created_at, id) of the last task of the page before."""
        at, last = before or (9e18, "")
        shown = SHOWN[status] if status else "state <> 'expired'"
        rows = await self.database.fetch(
            f"""SELECT * FROM tasks WHERE (created_at, id) < (:at, :last) AND {shown}
                ORDER BY created_at DESC, id DESC LIMIT :limit""",
            at=at,
            last=last,
            limit=limit,
        )
        return [_to_task(row) for row in rows]

    async def counts(self) -> dict[str, int]:
        """Rows by state."""
        rows = await self.database.fetch("SELECT state, count(*) AS n FROM tasks GROUP BY state")
        return {row["state"]: row["n"] for row in rows}

    async def attempts(self, task_id: str) -> list[Attempt]:
        rows = await self.database.fetch("SELECT * FROM attempts WHERE task_id = :id ORDER BY number", id=task_id)
        return [Attempt(**row) for row in rows]

    async def attempt(self, task_id: str, number: int) -> Attempt | None:
        row = await self.database.point(
            "SELECT * FROM attempts WHERE task_id = :id AND number = :number", id=task_id, number=number
        )
        return Attempt(**row) if row else None

    # -- leasing

    async def claim(self, state: State, *, now: float, lease: Lease, limit: int) -> list[Task]:
        """Lease up to `limit` tasks whose next step in this state is due, the most overdue first."""
        return await self._lease(
            "state = :state AND due_at <= :now ORDER BY due_at", state=state.value, now=now, lease=lease, limit=limit
        )

    async def claim_queued(self, provider: str, *, now: float, lease: Lease, limit: int) -> list[Task]:
        """The same for orders that wait to be submitted to one provider, first come first served."""
        return await self._lease(
            "state = 'queued' AND provider = :provider AND due_at <= :now ORDER BY due_at, id",
            provider=provider,
            now=now,
            lease=lease,
            limit=limit,
        )

    async def claim_overdue(self, *, now: float, lease: Lease, limit: int) -> list[Task]:
        """Orders that waited in the queue longer than anybody should."""
        return await self._lease(
            "state = 'queued' AND deadline_at <= :now ORDER BY deadline_at", now=now, lease=lease, limit=limit
        )

    async def _lease(self, which: str, *, now: float, lease: Lease, limit: int, **params: Any) -> list[Task]:
        where, order = which.split("ORDER BY")
        if limit <= 0 or not await self._any(where, now=now, **params):
            return []
        (outcome,) = await self.database.transact(
            Statement(
                # materialized: chosen and locked once, however the update is carried out
                sql=f"""WITH due AS MATERIALIZED (SELECT id FROM tasks WHERE {where} AND lease_until <= :now
                    ORDER BY{order} LIMIT :limit{self.database.skip_locked})
                    UPDATE tasks SET leased_by = :holder, lease_until = :until, version = version + 1
                    WHERE id IN (SELECT id FROM due) RETURNING *""",
                params={"now": now, "holder": lease.holder, "until": lease.until, "limit": limit, **params},
            )
        )
        return [_to_task(row) for row in outcome.rows]

    async def _any(self, where: str, **params: Any) -> bool:
        """Look before claiming: an idle worker must not take the writer's time."""
        sql = f"SELECT 1 AS one FROM tasks WHERE {where} AND lease_until <= :now LIMIT 1"
        return await self.database.point(sql, **params) is not None

    async def renew(self, held: Sequence[tuple[str, str]], until: float) -> None:
        """Keep the leases (task id, holder) of steps that still run; one that was lost or given back stays so."""
        await self.database.transact(
            *(
                Statement(
                    sql="UPDATE tasks SET lease_until = :until WHERE id = :id AND leased_by = :holder",
                    params={"id": task_id, "holder": holder, "until": until},
                )
                for task_id, holder in held
            )
        )

    async def next_due(self, state: State, now: float) -> float | None:
        """When the next task of this state, that nobody works on, is due."""
        row = await self.database.point(
            "SELECT due_at FROM tasks WHERE state = :state AND lease_until <= :now ORDER BY due_at LIMIT 1",
            state=state.value,
            now=now,
        )
        return row["due_at"] if row else None

    async def next_queued(self, provider: str, now: float) -> float | None:
        """When the next order, that nobody is about to submit, may be submitted."""
        row = await self.database.point(
            """SELECT due_at FROM tasks WHERE state = 'queued' AND provider = :provider AND lease_until <= :now
                ORDER BY due_at, id LIMIT 1""",
            provider=provider,
            now=now,
        )
        return row["due_at"] if row else None

    async def due_sooner(self, state: State, retention: float, limit: int) -> int:
        """Ended tasks that would be kept longer than `retention` seconds after their end: not any more. How many."""
        # looked for by a reader: where there is none, the writer is not kept waiting
        rows = await self.database.fetch(
            """SELECT id FROM tasks WHERE state = :state AND due_at > ended_at + :retention + 1
                ORDER BY id LIMIT :limit""",  # in one order, whoever does it: two of them must not wait for each other
            state=state.value,
            retention=retention,
            limit=limit,
        )
        sooner = "UPDATE tasks SET due_at = ended_at + :retention, version = version + 1 WHERE id = :id"
        await self.database.transact(
            *(Statement(sql=sooner, params={"id": row["id"], "retention": retention}) for row in rows)
        )
        return len(rows)

    # -- changing: statements for a transaction

    def adding(self, task: Task) -> Statement:
        values = {f.name: getattr(task, f.name) for f in fields(task)}
        return Statement(sql=_INSERT, params=_to_row(values))

    def saving(self, task: Task, **changes: Any) -> Statement:
        """Compare and set: the changes, if the row still has the version of `task`; otherwise `Stale`."""
        sets = "".join(f"{name} = :{name}, " for name in changes)
        return Statement(
            sql=f"UPDATE tasks SET {sets}version = version + 1 WHERE id = :id AND version = :version",
            params={**_to_row(changes), "id": task.id, "version": task.version},
            must_change=True,
        )

    def pinning(self, task_id: str, state: State) -> Statement:
        """The task stays in this state until the transaction has ended; `Stale` if it is in another one."""
        return Statement(
            sql="UPDATE tasks SET version = version WHERE id = :id AND state = :state",
            params={"id": task_id, "state": state.value},
            must_change=True,
        )

    def deleting(self, task: Task) -> list[Statement]:
        """The row and its ledger, if the row still has the version of `task`."""
        return [
            Statement(
                sql="DELETE FROM tasks WHERE id = :id AND version = :version",
                params={"id": task.id, "version": task.version},
                must_change=True,
            ),
            Statement(sql="DELETE FROM attempts WHERE task_id = :id", params={"id": task.id}),
        ]

    def noting(self, task_id: str, number: int, **changes: Any) -> Statement:
        """Write into one line of the ledger."""
        sets = ", ".join(f"{name} = :{name}" for name in changes)
        return Statement(
            sql=f"UPDATE attempts SET {sets} WHERE task_id = :task_id AND number = :number",
            params={**changes, "task_id": task_id, "number": number},
        )
