"""Deletions of accounts: which are in progress, and the statements that delete what has the owner in a column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_as

_OWNED: Final = {
    "deliveries": "caller",
    "idempotency": "caller",
    "batches": "caller",
    "owner_usage": "owner",
}
"""Table → column of the owner; nothing outside of the database leads to these rows."""


@dataclass(frozen=True, kw_only=True)
class OwnerDeletion:
    """One account that is deleted. Moments (`_at`) are seconds since the epoch."""

    owner: str
    requested_at: float
    due_at: float
    """When its data are looked for again."""


@dataclass(frozen=True)
class OwnerDeletions:
    """Deletions in progress."""

    database: Database

    async def list_due(self, now: float, limit: int) -> list[OwnerDeletion]:
        """Return the deletions to go on with, the most overdue first."""
        sql = "SELECT * FROM owner_deletions WHERE due_at <= :now ORDER BY due_at LIMIT :limit"
        return await fetch_as(self.database, OwnerDeletion, sql, now=now, limit=limit)

    def begin(self, owner: str, now: float) -> Statement:
        """Begin a deletion, for the transaction that ends the account. Once more changes nothing."""
        return Statement(
            sql="""INSERT INTO owner_deletions (owner, requested_at, due_at) VALUES (:owner, :now, :now)
                ON CONFLICT (owner) DO NOTHING""",
            params={"owner": owner, "now": now},
        )

    async def postpone(self, owner: str, due_at: float) -> None:
        """Look for its data again at a moment."""
        await self.database.execute("UPDATE owner_deletions SET due_at = :at WHERE owner = :o", o=owner, at=due_at)

    async def finish(self, owner: str) -> None:
        await self.database.execute("DELETE FROM owner_deletions WHERE owner = :owner", owner=owner)

    def delete_rows(self, owner: str) -> list[Statement]:
        """Delete what has the owner in a column, and needs nothing but that."""
        params = {"owner": owner}
        attempts = (
            "DELETE FROM delivery_attempts WHERE delivery_id IN (SELECT id FROM deliveries WHERE caller = :owner)"
        )
        # counters of other things than orders have more behind the owner
        counters = "DELETE FROM rate_limits WHERE caller = :owner OR substr(caller, 1, :length) = :beginning"
        return [
            Statement(sql=attempts, params=params),
            *(
                Statement(sql=f"DELETE FROM {table} WHERE {column} = :owner", params=params)
                for table, column in _OWNED.items()
            ),
            Statement(sql=counters, params={**params, "length": len(owner) + 1, "beginning": f"{owner} "}),
        ]
