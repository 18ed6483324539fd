"""Idempotency records: which order requests were seen, and which tasks they created."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_one_as, insert_row


@dataclass(frozen=True, kw_only=True)
class IdempotencyRecord:
    """One order request of a caller, identified by its key."""

    caller: str
    key: str
    """The caller's Idempotency-Key, or a derived key, which contains a space and so cannot be sent."""
    fingerprint: str
    """Hash of the request's content."""
    ordinal: int = 0
    """Counts equal requests without Idempotency-Key, from 1; 0 for a request with one."""
    retry_count: int = 0
    """The highest retry count of a request that joined this record."""
    batch: str = ""
    """The tasks of the request; empty until they are created."""
    created_at: float
    answered_at: float | None = None
    """When a client received the answer; recorded only for requests without Idempotency-Key."""


@dataclass(frozen=True)
class IdempotencyRecords:
    """Idempotency records in the database."""

    database: Database

    async def get(self, caller: str, key: str) -> IdempotencyRecord | None:
        sql = "SELECT * FROM idempotency WHERE caller = :caller AND key = :key"
        return await fetch_one_as(self.database, IdempotencyRecord, sql, caller=caller, key=key)

    async def newest_unanswered(
        self, caller: str, fingerprint: str, *, since: float, retry_count: int
    ) -> IdempotencyRecord | None:
        """Return the newest request without key that no retry with this count has joined and no client has answered."""
        sql = """SELECT * FROM idempotency WHERE caller = :caller AND fingerprint = :fingerprint AND ordinal > 0
            AND answered_at IS NULL AND created_at >= :since AND retry_count < :retry_count
            ORDER BY ordinal DESC LIMIT 1"""
        params = {"caller": caller, "fingerprint": fingerprint, "since": since, "retry_count": retry_count}
        return await fetch_one_as(self.database, IdempotencyRecord, sql, **params)

    async def next_ordinal(self, caller: str, fingerprint: str) -> int:
        sql = """SELECT coalesce(max(ordinal), 0) + 1 AS next FROM idempotency
            WHERE caller = :caller AND fingerprint = :fingerprint AND ordinal > 0"""
        row: Any = await self.database.fetch_one(sql, caller=caller, fingerprint=fingerprint)
        return int(row["next"])

    async def insert_if_absent(self, new: IdempotencyRecord) -> bool:
        """Reserve the record's key. Return False if it exists already."""
        insert = insert_row("idempotency", new, "ON CONFLICT (caller, key) DO NOTHING")
        (inserted,) = await self.database.transact(insert)
        return inserted.count == 1

    async def join_retry(self, joined: IdempotencyRecord, retry_count: int) -> bool:
        """Let one retry join the record. Return False if an equal retry joined first, or the record was answered."""
        sql = """UPDATE idempotency SET retry_count = :retry_count WHERE caller = :caller AND key = :key
            AND retry_count < :retry_count AND answered_at IS NULL"""
        return await self.database.execute(sql, caller=joined.caller, key=joined.key, retry_count=retry_count) == 1

    def claim(self, claimed: IdempotencyRecord) -> Statement:
        """Bind the record to its batch, inserting it if needed; `Stale` if it is bound to a batch already."""
        unbound = "ON CONFLICT (caller, key) DO UPDATE SET batch = excluded.batch WHERE idempotency.batch = ''"
        return replace(insert_row("idempotency", claimed, unbound), must_change=True)

    async def mark_answered(self, answered: IdempotencyRecord, now: float) -> None:
        sql = "UPDATE idempotency SET answered_at = :now WHERE caller = :caller AND key = :key AND answered_at IS NULL"
        await self.database.execute(sql, caller=answered.caller, key=answered.key, now=now)

    async def delete_before(self, before: float, limit: int) -> int:
        """Delete old records without a stored task; while a task exists, a repeated request must find it."""
        sql = f"""DELETE FROM idempotency WHERE (caller, key) IN (SELECT caller, key FROM idempotency
            WHERE created_at < :before AND NOT EXISTS
            (SELECT 1 FROM tasks t WHERE t.batch = idempotency.batch AND t.state <> 'expired')
            ORDER BY created_at LIMIT :limit{self.database.skip_locked})"""
        return await self.database.execute(sql, before=before, limit=limit)
