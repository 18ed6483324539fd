"""Attempts: one row per submission to a provider, with its outcome and cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from storage.sql.database import Database, Statement
from storage.sql.rows import SqlList, fetch_as, fetch_one_as

NO_RESULT: Final = "{}"
"""A duplicate result whose content is deleted."""
IS_OWN_ACCOUNT: Final = "provider LIKE '%@%'"
ANY_ACCOUNT: Final = "rtrim(provider, '0123456789abcdef')"
"""The name of an account of a user without its number: that of all whose users are deleted."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One submission to a provider: a request that could cost something, and its outcome.

    key_id: stable name of the provider's key that it used.
    outcome: `sent`, `accepted`, `refused`, `failed`, `succeeded` or `unknown`.
    price: of one image by the catalog at the submission, in the provider's unit; None if unknown.
    usd_per_unit: value of the provider's unit then; None if unknown.
    cost: in the provider's unit: as it reported it, or else `price`; None unless it was billed.
    duplicate_result: a second success, as JSON. duplicate_cost: of a second job of this attempt, like `cost`.
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
    price: float | None = None
    usd_per_unit: float | None = None
    cost: float | None = None
    duplicate_result: str | None = None
    duplicate_cost: float | None = None
    learned_by: str | None = None

    def to_usd(self, amount: float | None) -> float | None:
        """Return an amount in the provider's unit in USD; None if either is unknown."""
        return None if amount is None or self.usd_per_unit is None else amount * self.usd_per_unit


@lru_cache(maxsize=256)
def _update_text(names: tuple[str, ...]) -> str:
    sets = ", ".join(f"{name} = :{name}" for name in names)
    return f"UPDATE attempts SET {sets} WHERE task_id = :task_id AND number = :number"


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

    async def count_ended(self, provider: str, key_id: str, since: float) -> dict[str | None, int]:
        """Count the ended attempts of one key that were sent since a moment, by error code; None: success."""
        sql = """SELECT CASE WHEN outcome = 'succeeded' THEN NULL ELSE code END AS code, count(*) AS n FROM attempts
            WHERE provider = :provider AND key_id = :key_id AND sent_at > :since AND ended_at IS NOT NULL GROUP BY 1"""
        rows = await self.database.fetch(sql, provider=provider, key_id=key_id, since=since)
        return {row["code"]: row["n"] for row in rows}

    def delete_words_of_expired(self, tasks: SqlList) -> Statement:
        """Delete what providers said about those tasks that are expired; amounts stay.

        It follows the statement that expires the tasks.
        """
        listed, params = tasks
        state = "(SELECT t.state FROM tasks t WHERE t.id = attempts.task_id)"
        return Statement(
            sql=f"""UPDATE attempts SET provider_code = NULL,
                duplicate_result = CASE WHEN duplicate_result IS NULL THEN NULL ELSE '{NO_RESULT}' END
                WHERE task_id IN ({listed}) AND {state} = 'expired'
                AND (provider_code IS NOT NULL OR duplicate_result IS NOT NULL)""",
            params=params,
        )

    def forget_account(self, task_id: str) -> Statement:
        """Let the attempts of a task tell no longer with which account of its owner they were made."""
        return Statement(
            sql=f"UPDATE attempts SET provider = {ANY_ACCOUNT}, key_id = '' WHERE task_id = :id AND {IS_OWN_ACCOUNT}",
            params={"id": task_id},
        )

    def update_attempt(self, task_id: str, number: int, **changes: Any) -> Statement:
        """Change one attempt, in the transaction that changes its task."""
        return Statement(
            sql=_update_text(tuple(changes)),
            params={**changes, "task_id": task_id, "number": number},
        )
