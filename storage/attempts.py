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

    def update_attempt(self, task_id: str, number: int, **changes: Any) -> Statement:
        """Change one attempt, in the transaction that changes its task."""
        sets = ", ".join(f"{name} = :{name}" for name in changes)
        return Statement(
            sql=f"UPDATE attempts SET {sets} WHERE task_id = :task_id AND number = :number",
            params={**changes, "task_id": task_id, "number": number},
        )


_ENTRY: Final = f"""CAST(a.sent_at AS BIGINT) / {SECONDS_PER_DAY} AS day, t.caller AS owner, a.provider, a.key_id,
    t.model, a.billed, 1 AS attempts, CASE WHEN a.duplicate_result IS NULL THEN 0 ELSE 1 END AS duplicates,
    coalesce(a.cost, 0.0) + coalesce(a.duplicate_cost, 0.0) AS cost,
    coalesce(a.price * a.usd_per_unit, 0.0) AS usd_estimated,
    coalesce((coalesce(a.cost, 0.0) + coalesce(a.duplicate_cost, 0.0)) * a.usd_per_unit, 0.0) AS usd"""
"""An attempt `a` of a task `t` as a row of the ledger."""
_KEY: Final = "day, owner, provider, key_id, model, billed"
_AMOUNTS: Final = ("attempts", "duplicates", "cost", "usd_estimated", "usd")


@dataclass(frozen=True)
class Ledger:
    """Sums per day, owner, provider, key, model and billing; what attempts cost after their tasks are gone."""

    database: Database

    def append_attempts(self, which: str, params: Mapping[str, Any]) -> Statement:
        """Add the attempts of the tasks that `which` selects, `t` being the task.

        For the transaction that deletes these attempts, with their tasks locked: so each is counted once.
        """
        sums = ", ".join(f"sum({name})" for name in _AMOUNTS)
        added = ", ".join(f"{name} = ledger.{name} + excluded.{name}" for name in _AMOUNTS)
        return Statement(
            sql=f"""INSERT INTO ledger ({_KEY}, {", ".join(_AMOUNTS)})
                SELECT {_KEY}, {sums}
                FROM (SELECT {_ENTRY} FROM tasks t JOIN attempts a ON a.task_id = t.id WHERE {which}) AS entries
                GROUP BY {_KEY}
                ON CONFLICT ({_KEY}) DO UPDATE SET {added}""",
            params=params,
        )

    async def delete_older(self, now: float, limit: int) -> int:
        """Delete at most `limit` rows of days that are more than `KEPT_DAYS` ago; return how many."""
        sql = f"""DELETE FROM ledger WHERE ({_KEY}) IN (SELECT {_KEY} FROM ledger
            WHERE day < :day ORDER BY {_KEY} LIMIT :limit{self.database.skip_locked})"""
        return await self.database.execute(sql, day=int(now) // SECONDS_PER_DAY - KEPT_DAYS, limit=limit)
