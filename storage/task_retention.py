"""Statements of retention: shorten it, expire tasks and purge them, many rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.ids import owner_key
from storage.ledger import Ledger
from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_as, in_clause, set_clause, to_columns
from storage.tasks import Task


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

    def update_all(self, tasks: Sequence[Task], **changes: Any) -> Statement:
        """Apply the same changes to tasks of one claim that are still leased by it, and end their lease."""
        which, params = _still_leased(tasks)
        return Statement(
            sql=f"""UPDATE tasks SET {set_clause(changes)}lease_until = 0, leased_by = '', version = version + 1
                WHERE {which}""",
            params={**to_columns(changes), **params},
        )

    def delete_all(self, tasks: Sequence[Task]) -> list[Statement]:
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


def _still_leased(tasks: Sequence[Task]) -> tuple[str, dict[str, Any]]:
    """Return the condition of tasks still leased by their claim; every change of state ends a lease, so it suffices."""
    listed, params = in_clause([task.id for task in tasks])
    return f"id IN ({listed}) AND leased_by = :holder", {**params, "holder": tasks[0].leased_by}
