"""Ledger of attempts whose tasks are gone: what each owner, key and model cost per day, without prompt or task id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from storage.sql.database import Database, Statement

SECONDS_PER_DAY: Final = 86_400
KEPT_DAYS: Final = 400


@dataclass(frozen=True)
class Ledger:
    """Sums per day, owner, provider, key, model and billing."""

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
        return await self.database.execute(
            f"""DELETE FROM ledger WHERE ({key}) IN (SELECT {key} FROM ledger
                WHERE day < :day ORDER BY {key} LIMIT :limit{self.database.skip_locked})""",
            day=int(now) // SECONDS_PER_DAY - KEPT_DAYS,
            limit=limit,
        )
