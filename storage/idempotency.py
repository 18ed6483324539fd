"""Idempotency records: which order requests were seen, and which tasks they created."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storage.sql.database import Database, Statement
from storage.sql.rows import fetch_as, fetch_one_as, insert_row


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
    sender: str = ""
    """The process that is sending the answer; empty where nobody records that, and after the answer was cut off."""
    left_at: float | None = None
    """When an answer ended before it was sent to its end."""


@dataclass(frozen=True)
class IdempotencyRecords:
    """Idempotency records in the database."""

    database: Database

    async def get(self, caller: str, key: str) -> IdempotencyRecord | None:
        sql = "SELECT * FROM idempotency WHERE caller = :caller AND key = :key"
        return await fetch_one_as(self.database, IdempotencyRecord, sql, caller=caller, key=key)

    async def list_unsent(self, caller: str, fingerprint: str, *, own: str, since: float) -> list[IdempotencyRecord]:
        """Return the requests without key whose answer is not at its end: cut off ones first, then the newest.

        Those whose answer this process (own) sends, or another that was alive since a moment, or was cut off since.
        """
        sql = """SELECT * FROM idempotency WHERE caller = :caller AND fingerprint = :fingerprint AND ordinal > 0
            AND answered_at IS NULL AND (sender = :own OR left_at >= :since OR EXISTS
            (SELECT 1 FROM answer_senders s WHERE s.name = idempotency.sender AND s.seen_at >= :since))
            ORDER BY sender <> '', ordinal DESC LIMIT 20"""
        params = {"caller": caller, "fingerprint": fingerprint, "own": own, "since": since}
        return await fetch_as(self.database, IdempotencyRecord, sql, **params)

    async def take_over(self, seen: IdempotencyRecord, taken: IdempotencyRecord) -> bool:
        """Let a repeated request send the answer of a record. Return False if another process was quicker."""
        sql = """UPDATE idempotency SET sender = :sender, left_at = NULL, retry_count = :retry_count
            WHERE caller = :caller AND key = :key AND answered_at IS NULL AND sender IN (:seen, '')
            AND retry_count = :seen_count"""
        changed = await self.database.execute(
            sql,
            caller=seen.caller,
            key=seen.key,
            sender=taken.sender,
            retry_count=taken.retry_count,
            seen=seen.sender,
            seen_count=seen.retry_count,
        )
        return changed == 1

    async def mark_left(self, record: IdempotencyRecord, now: float) -> None:
        """Record that the answer of this sender was cut off, unless another one has taken it over."""
        sql = """UPDATE idempotency SET sender = '', left_at = :now WHERE caller = :caller AND key = :key
            AND answered_at IS NULL AND sender = :sender"""
        await self.database.execute(sql, caller=record.caller, key=record.key, sender=record.sender, now=now)

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

    def claim(self, claimed: IdempotencyRecord) -> Statement:
        """Bind the record to its batch, inserting it if needed; `Stale` if it is bound to a batch already."""
        unbound = "ON CONFLICT (caller, key) DO UPDATE SET batch = excluded.batch WHERE idempotency.batch = ''"
        return insert_row("idempotency", claimed, unbound)._replace(must_change=True)

    async def mark_answered(self, answered: IdempotencyRecord, now: float) -> None:
        """Record that a client received the answer of this sender, unless another one has taken it over."""
        sql = """UPDATE idempotency SET answered_at = :now, sender = '' WHERE caller = :caller AND key = :key
            AND answered_at IS NULL AND sender = :sender"""
        await self.database.execute(sql, caller=answered.caller, key=answered.key, sender=answered.sender, now=now)

    async def delete_before(self, before: float, limit: int) -> int:
        """Delete old records without a stored task; while a task exists, a repeated request must find it."""
        sql = f"""DELETE FROM idempotency WHERE (caller, key) IN (SELECT caller, key FROM idempotency
            WHERE created_at < :before AND NOT EXISTS
            (SELECT 1 FROM tasks t WHERE t.batch = idempotency.batch AND t.state <> 'expired')
            ORDER BY created_at LIMIT :limit{self.database.skip_locked})"""
        return await self.database.execute(sql, before=before, limit=limit)


@dataclass(frozen=True, kw_only=True)
class AnswerSender:
    """A process that sends answers. beats: how often it was marked as alive, lastly at `seen_at`."""

    name: str
    seen_at: float
    beats: int


@dataclass(frozen=True)
class AnswerSenders:
    """Processes that are sending answers, and when each was last seen alive."""

    database: Database

    async def get(self, name: str) -> AnswerSender | None:
        sql = "SELECT * FROM answer_senders WHERE name = :name"
        return await fetch_one_as(self.database, AnswerSender, sql, name=name)

    async def mark_seen(self, name: str, now: float) -> None:
        sql = """INSERT INTO answer_senders (name, seen_at, beats) VALUES (:name, :now, 1)
            ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at, beats = answer_senders.beats + 1"""
        await self.database.execute(sql, name=name, now=now)

    async def delete_before(self, before: float, limit: int) -> int:
        """Delete processes that were last seen before a moment."""
        sql = f"""DELETE FROM answer_senders WHERE name IN (SELECT name FROM answer_senders WHERE seen_at < :before
            ORDER BY seen_at LIMIT :limit{self.database.skip_locked})"""
        return await self.database.execute(sql, before=before, limit=limit)
