"""Batches of different orders: what the caller said about all of them together. Their tasks have the batch's id."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from storage.deliveries import Delivery
from storage.sql.database import Database, Statement
from storage.sql.pages import fetch_page
from storage.sql.rows import fetch_as, fetch_one_as, insert_row, to_columns
from storage.states import ENDED_STATUSES

Ending = Literal["succeeded", "failed", "canceled"]

_HAS: Final = "EXISTS (SELECT 1 FROM tasks WHERE batch = :batch_id AND state = '{}')"
_ENDINGS: Final[Mapping[Ending, str]] = {
    "canceled": _HAS.format("canceled"),
    "succeeded": f"{_HAS.format('succeeded')} AND NOT {_HAS.format('canceled')}",
    "failed": f"NOT {_HAS.format('succeeded')} AND NOT {_HAS.format('canceled')}",
}
"""SQL condition of each end, once all tasks have ended; the same rule as `ending_of`."""


def ending_of(statuses: Collection[str]) -> Ending | None:
    """Return how a batch of tasks with these public statuses has ended; None if one of them has not."""
    if not ENDED_STATUSES.issuperset(statuses):
        return None
    return "canceled" if "canceled" in statuses else "succeeded" if "completed" in statuses else "failed"


@dataclass(frozen=True, kw_only=True)
class StoredBatch:
    """One batch."""

    id: str
    caller: str
    dialect: str
    """Whose list it is in."""
    name: str
    """As the caller calls it."""
    model: str
    """As the caller named it."""
    callback_urls: tuple[str, ...] = ()
    """Where webhooks announce its end."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the webhooks repeat; JSON values."""
    created_at: float
    updated_at: float
    """When one of its tasks ended last."""


@dataclass(frozen=True)
class Batches:
    """Batches in the database."""

    database: Database

    async def get(self, batch_id: str) -> StoredBatch | None:
        return await fetch_one_as(self.database, StoredBatch, "SELECT * FROM batches WHERE id = :id", id=batch_id)

    async def list_newest(
        self, caller: str, dialect: str, *, before: tuple[float, str] | None, limit: int
    ) -> list[StoredBatch]:
        """Return one page of a caller's batches, newest first; before: (created_at, id) of the last row before."""
        at, last = before or (9e18, "")
        return await fetch_as(
            self.database,
            StoredBatch,
            """SELECT * FROM batches WHERE caller = :caller AND dialect = :dialect
                AND (created_at, id) < (:at, :last) ORDER BY created_at DESC, id DESC LIMIT :limit""",
            caller=caller,
            dialect=dialect,
            at=at,
            last=last,
            limit=limit,
        )

    async def list_of_caller(self, caller: str, *, before: tuple[float, str] | None, limit: int) -> list[StoredBatch]:
        """Return one page of a caller's batches of all dialects, newest first; before: as in `list_newest`."""
        return await fetch_page(
            self.database,
            StoredBatch,
            "batches",
            moment="created_at",
            before=before,
            limit=limit,
            caller=caller,
        )

    def insert_batch(self, batch: StoredBatch) -> Statement:
        return insert_row("batches", batch)

    def touch(self, batch_id: str, now: float) -> Statement:
        """Note that a task has ended; two tasks that end at the same time wait for each other here."""
        return Statement(sql="UPDATE batches SET updated_at = :now WHERE id = :id", params={"id": batch_id, "now": now})

    def insert_if_ended(self, batch_id: str, ending: Ending, delivery: Delivery) -> Statement:
        """Insert the webhook about an end of a batch, if it has ended so.

        It follows `touch` and the change of a task in one transaction: of several at the same time, the last one sees
        the others.
        """
        names = vars(delivery)
        return Statement(
            sql=f"""INSERT INTO deliveries ({", ".join(f'"{name}"' for name in names)})
                SELECT {", ".join(f":{name}" for name in names)}
                WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE batch = :batch_id AND ended_at IS NULL)
                AND {_ENDINGS[ending]} ON CONFLICT (id) DO NOTHING""",
            params={**to_columns(names), "batch_id": batch_id},
        )

    async def delete(self, batch: StoredBatch) -> bool:
        """Delete the row; its tasks stay. Return False if it was deleted before."""
        return await self.database.execute("DELETE FROM batches WHERE id = :id", id=batch.id) == 1

    async def delete_before(self, before: float, limit: int) -> int:
        """Delete old batches without a stored task."""
        sql = f"""DELETE FROM batches WHERE id IN (SELECT id FROM batches WHERE created_at < :before AND NOT EXISTS
            (SELECT 1 FROM tasks t WHERE t.batch = batches.id AND t.state <> 'expired')
            ORDER BY created_at LIMIT :limit{self.database.skip_locked})"""
        return await self.database.execute(sql, before=before, limit=limit)
