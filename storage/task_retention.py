"""Statements of retention: shorten it, expire tasks and purge them, many rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Protocol

from storage.ids import owner_key
from storage.ledger import Ledger
from storage.sql.database import Database, Statement
from storage.sql.rows import SqlList, fetch_as, from_row, in_clause, set_clause, to_columns
from storage.states import TaskState
from storage.tasks import Lease, Task


class EndedTask(Protocol):
    """What retention reads of a task that has ended: a few of the columns of `Task`."""

    @property
    def id(self) -> str: ...
    @property
    def batch(self) -> str: ...
    @property
    def state(self) -> TaskState: ...
    @property
    def leased_by(self) -> str: ...
    @property
    def step_retries(self) -> int: ...
    @property
    def ended_at(self) -> float | None: ...
    @property
    def pinned_at(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class LeasedEnd:
    """An `EndedTask` that is leased."""

    id: str
    batch: str
    state: TaskState
    leased_by: str
    step_retries: int
    ended_at: float | None
    pinned_at: float | None


_COLUMNS: Final = ", ".join(field.name for field in fields(LeasedEnd))


@dataclass(frozen=True)
class TaskRetention:
    """Tasks on their way out."""

    database: Database

    async def list_of_owner(self, owner: str, *, queued_only: bool = False, limit: int) -> list[Task]:
        """Return some tasks of an owner, expired ones too."""
        only = "AND state = 'queued'" if queued_only else ""
        sql = f"SELECT * FROM tasks WHERE caller = :owner {only} ORDER BY created_at, id LIMIT :limit"
        return await fetch_as(self.database, Task, sql, owner=owner, limit=limit)

    async def shorten_retention(self, retention: float, *, after: str, limit: int) -> str | None:
        """Make ended tasks due that would be kept longer than `retention` seconds after their end.

        Works on the next `limit` ids after `after`; returns the last of them, None at the end.
        """
        rows = await self.database.fetch(
            "SELECT id FROM tasks WHERE id > :after ORDER BY id LIMIT :limit", after=after, limit=limit
        )
        if not rows:
            return None
        listed, params = in_clause([row["id"] for row in rows])
        await self.database.execute(
            f"""UPDATE tasks SET due_at = ended_at + :retention, version = version + 1
                WHERE id IN ({listed}) AND state IN ('succeeded', 'failed', 'canceled')
                AND pinned_at IS NULL AND due_at > ended_at + :retention + 1""",
            retention=retention,
            **params,
        )
        return str(rows[-1]["id"])

    async def unpin_ownerless(self, retention: float) -> int:
        """Unpin ended tasks of API keys that are revoked and belonged to no user; return how many."""
        return await self.database.execute(
            """UPDATE tasks SET pinned_at = NULL, due_at = ended_at + :retention, version = version + 1
                WHERE pinned_at IS NOT NULL AND state IN ('succeeded', 'failed', 'canceled') AND caller LIKE 'key%'
                AND NOT EXISTS (SELECT 1 FROM api_keys WHERE id = tasks.caller)""",
            retention=retention,
        )

    async def active_owners(self, owners: Sequence[str]) -> set[str]:
        """Return the owners of files that have a task, or a task of their batch, that is not expired."""
        names = {owner: owner_key(owner)[1] for owner in owners}
        listed, params = in_clause(sorted(set(names.values())))
        rows = await self.database.fetch(
            f"""SELECT id AS name FROM tasks WHERE id IN ({listed}) AND state <> 'expired'
                UNION SELECT batch FROM tasks WHERE batch IN ({listed}) AND state <> 'expired'""",
            **params,
        )
        found = {row["name"] for row in rows}
        return {owner for owner, name in names.items() if name in found}

    def expire_due(
        self, state: TaskState, changes: Mapping[str, Any], *, now: float, lease: Lease, limit: int, ended_before: float
    ) -> Statement:
        """Expire and lease up to `limit` tasks that ended before a moment and are due, the most overdue first.

        Tasks of conversations, which are deleted as a whole, are left to `claim`, and so are pinned ones. changes: must
        set `due_at` to `now`, by which `just_expired` finds the tasks.
        """
        sql = f"""WITH due AS MATERIALIZED (SELECT id FROM tasks
            WHERE state = :ended_state AND due_at <= :now AND lease_until <= :now
            AND pinned_at IS NULL AND ended_at <= :ended_before
            AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.batch = tasks.batch)
            ORDER BY due_at LIMIT :limit{self.database.skip_locked})
            UPDATE tasks SET {set_clause(changes)}leased_by = :holder, lease_until = :until, version = version + 1
            WHERE id IN (SELECT id FROM due) RETURNING {_COLUMNS}"""
        params = {"now": now, "ended_before": ended_before, "limit": limit, "ended_state": state.value}
        lease_params = {"holder": lease.holder, "until": lease.until}
        return Statement(sql=sql, params={**to_columns(changes), **params, **lease_params})

    async def expire_with_rows(self, expire: Statement, *following: Statement) -> list[LeasedEnd]:
        """Run `expire_due` and the statements that delete what belongs to its tasks; return the tasks."""
        outcome, *_ = await self.database.transact(expire, *following)
        return [from_row(LeasedEnd, row) for row in outcome.rows]

    async def claim(self, state: TaskState, *, now: float, lease: Lease, limit: int) -> list[LeasedEnd]:
        """Lease up to `limit` ended tasks that are due, the most overdue first, like `Tasks.claim`."""
        which = "state = :state AND due_at <= :now AND (lease_until <= :now OR leased_by = :holder)"
        sql = f"""WITH due AS MATERIALIZED (SELECT id FROM tasks
            WHERE {which} ORDER BY due_at LIMIT :limit{self.database.skip_locked})
            UPDATE tasks SET leased_by = :holder, lease_until = :until, version = version + 1
            WHERE id IN (SELECT id FROM due) RETURNING {_COLUMNS}"""
        params = {"state": state.value, "now": now, "holder": lease.holder, "until": lease.until, "limit": limit}
        (outcome,) = await self.database.transact(Statement(sql=sql, params=params))
        return [from_row(LeasedEnd, row) for row in outcome.rows]

    def update_all(self, tasks: Sequence[EndedTask], **changes: Any) -> Statement:
        """Apply the same changes to tasks of one claim that are still leased by it, and end their lease."""
        which, params = _still_leased(tasks)
        return Statement(
            sql=f"""UPDATE tasks SET {set_clause(changes)}lease_until = 0, leased_by = '', version = version + 1
                WHERE {which}""",
            params={**to_columns(changes), **params},
        )

    def delete_all(self, tasks: Sequence[EndedTask]) -> list[Statement]:
        """Delete tasks of one claim that are still leased by it, and move their attempts into the ledger.

        1. Lock the tasks: another claim between the steps would count their attempts twice. 2. Add the attempts to the
        ledger. 3. Delete attempts and tasks.
        """
        which, params = _still_leased(tasks)
        attempts = f"DELETE FROM attempts WHERE task_id IN (SELECT id FROM tasks WHERE {which})"
        return [
            Statement(sql=f"UPDATE tasks SET version = version WHERE {which}", params=params),
            Ledger(self.database).append_attempts(which, params),
            Statement(sql=attempts, params=params),
            Statement(sql=f"DELETE FROM tasks WHERE {which}", params=params),
        ]


def just_expired(now: float, lease: Lease) -> SqlList:
    """Return the ids of the tasks that `expire_due` has expired in the same transaction."""
    ids = "SELECT id FROM tasks WHERE state = 'expired' AND due_at = :expired_at AND leased_by = :holder"
    return ids, {"expired_at": now, "holder": lease.holder}


def _still_leased(tasks: Sequence[EndedTask]) -> tuple[str, dict[str, Any]]:
    """Return the condition of tasks still leased by their claim; every change of state ends a lease, so it suffices."""
    listed, params = in_clause([task.id for task in tasks])
    return f"id IN ({listed}) AND leased_by = :holder", {**params, "holder": tasks[0].leased_by}
