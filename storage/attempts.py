"""Attempts: one row per submission to a provider, with its outcome and its cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storage.sql.database import Database, Statement
from storage.sql.rows import from_row


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One submission to a provider: a request that could cost something, and its outcome.

    key_id: the provider's key that it used, by its stable name; checks and cancels use the same.
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
        rows = await self.database.fetch("SELECT * FROM attempts WHERE task_id = :id ORDER BY number", id=task_id)
        return [from_row(Attempt, row) for row in rows]

    async def get(self, task_id: str, number: int) -> Attempt | None:
        row = await self.database.fetch_one(
            "SELECT * FROM attempts WHERE task_id = :id AND number = :number", id=task_id, number=number
        )
        return from_row(Attempt, row) if row else None

    def update_attempt(self, task_id: str, number: int, **changes: Any) -> Statement:
        """Change one attempt, in the transaction that changes its task."""
        sets = ", ".join(f"{name} = :{name}" for name in changes)
        return Statement(
            sql=f"UPDATE attempts SET {sets} WHERE task_id = :task_id AND number = :number",
            params={**changes, "task_id": task_id, "number": number},
        )
