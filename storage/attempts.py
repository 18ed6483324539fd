"""Attempts, one row per submission to a provider with its outcome and cost, and the ledger of purged ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_as, fetch_one_as

SECONDS_PER_DAY: Final = 86_400
KEPT_DAYS: Final = 400


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One submission to a provider: a request that could cost something, and its outcome.

    key_id: stable name of the provider's key that it used.
    outcome: `sent`, `accepted`, `refused`, `failed`, `succeeded` or `unknown`.
    duplicate_result: a second success, as JSON.
    learned_by: source of the end: `callback`, `check` (although a callback was expected) or `poll` (a check
    without one); None where the response to the submission had it.
    """

    task_id: str
    number: int
    provider: str
    key_id: str
    job_id: str | None = None
    sent_at: float
    ended_at: float | None = None
    outcome: str = "sent"
    code: str | None = None
    provider_code: str | None = None
    billed: str = "unknown"
    cost: float | None = None
    duplicate_result: str | None = None
    learned_by: str | None = None


@dataclass(frozen=True)
class Attempts:
    """Attempts of tasks that are not purged. New ones are written by `provider_limits`, which counts them."""

    database: Database

    async def list_of_task(self, task_id: str) -> list[Attempt]:
        """Return the attempts of a task, in order."""
        sql = "SELECT * FROM attempts WHERE task_id = :id ORDER BY number"
        return await fetch_as(self.database, Attempt, sql, id=task_id)

    async def get(self, task_id: str, number: int) -> Attempt | None:
        sql = "SELECT * FROM attempts WHERE task_id = :id AND number = :number"
        return await fetch_one_as(self.database, Attempt, sql, id=task_id, number=number)

    def update_attempt(self, task_id: str, number: int, **changes: Any) -> Statement:
        """Change one attempt, in the transaction that changes its task."""
        sets = ", ".join(f"{name} = :{name}" for name in changes)
        return Statement(
            sql=f"UPDATE attempts SET {sets} WHERE task_id = :task_id AND number = :number",
            params={**changes, "task_id": task_id, "number": number},
        )


@dataclass(frozen=True)
class Ledger:
    """Sums per day, owner, provider, key, model and billing; what attempts cost after their tasks are gone."""

    database: Database

    def append_attempts(self, which: str, params: Mapping[str, Any]) -> Statement:
        """Add the attempts of the tasks that `which` selects, `t` being the task.

        For the transaction that deletes these attempts, with their tasks locked: so each is counted once.
        """
        return Statement(
            sql=f"""INSERT INTO ledger (day, owner, provider, key_id, model, billed, attempts, cost)
                SELECT CAST(a.sent_at AS BIGINT) / {SECONDS_PER_DAY}, t.caller, a.provider, a.key_id, t.model, a.billed,
                    count(*), coalesce(sum(a.cost), 0.0)
                FROM tasks t JOIN attempts a ON a.task_id = t.id WHERE {which}
                GROUP BY 1, 2, 3, 4, 5, 6
                ON CONFLICT (day, owner, provider, key_id, model, billed) DO UPDATE SET
                    attempts = ledger.attempts + excluded.attempts, cost = ledger.cost + excluded.cost""",
            params=params,
        )

    async def delete_older(self, now: float, limit: int) -> int:
        """Delete at most `limit` rows of days that are more than `KEPT_DAYS` ago; return how many."""
        key = "day, owner, provider, key_id, model, billed"
        sql = f"""DELETE FROM ledger WHERE ({key}) IN (SELECT {key} FROM ledger
            WHERE day < :day ORDER BY {key} LIMIT :limit{self.database.skip_locked})"""
        return await self.database.execute(sql, day=int(now) // SECONDS_PER_DAY - KEPT_DAYS, limit=limit)
