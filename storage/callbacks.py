"""Callback inbox: each stored callback with its verification, and whether it was processed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from storage.ids import provider_of
from storage.sql.database import Database, Statement
from storage.sql.pages import fetch_page
from storage.sql.rows import fetch_as, fetch_one_as, insert_row, to_columns


@dataclass(frozen=True, kw_only=True)
class CallbackRecord:
    """One callback without its content.

    verification: `accept`, `recheck`, `reject`, `unknown` or `malformed`. status: our HTTP answer. processed_at: None
    until then. job_ended_at: by the provider's own clock, as far as the body says so. replay_of: the callback that
    this one repeats on request.
    """

    id: str
    provider: str
    task_id: str | None = None
    attempt: int | None = None
    verification: str
    status: int
    reason: str
    received_at: float
    processed_at: float | None = None
    job_ended_at: float | None = None
    replay_of: str | None = None

    @property
    def is_relevant(self) -> bool:
        """Return whether a task is to process it."""
        return self.verification in {"accept", "recheck"}


@dataclass(frozen=True, kw_only=True)
class StoredCallback(CallbackRecord):
    """One callback as received, without secrets.

    headers, query, evidence: JSON. body: text; body_truncated: only its beginning.
    """

    headers: str
    query: str
    body: str
    body_truncated: bool = False
    evidence: str

    @property
    def size_bytes(self) -> int:
        """Return about how much of the database the row takes, its index entries included."""
        texts = (self.headers, self.query, self.body, self.evidence, self.reason)
        return ROW_BYTES + sum(len(text.encode()) for text in texts)


NO_CONTENT: Final[Mapping[str, Any]] = {"headers": "{}", "query": "{}", "body": "", "body_truncated": True}
"""Fields of a callback about a task that is deleted."""
ROW_BYTES: Final = 1024
"""Of a row without its texts."""
MAX_EVICTED: Final = 100
"""Deleted at most with one insertion, which needs a few."""


_UNPROVEN_BYTES = "(SELECT bytes FROM callback_totals WHERE kind = 'unproven')"
_IS_ACCEPTED = "c.verification = 'accept' AND c.replay_of IS NULL"
_IS_UNPROCESSED = "processed_at IS NULL AND task_id IS NOT NULL"
"""As in the index of unprocessed callbacks."""


@dataclass(frozen=True)
class Callbacks:
    """Callbacks in the database."""

    database: Database

    def insert_callback(self, callback: StoredCallback) -> Statement:
        """Store a callback, once: a transaction whose end is unknown is run again with the rows as they are then."""
        return insert_row("callbacks", callback, "ON CONFLICT (id) DO NOTHING")

    def insert_unproven(self, callback: StoredCallback, *, max_bytes: int) -> list[Statement]:
        """Insert a callback of an unknown sender; delete the oldest of these beyond `max_bytes`, over all processes.

        They form a log: the position of each is the number of bytes before it, ever. 1. Count its bytes; the lock of
        the counter's row orders concurrent insertions. 2. Insert it at its position. 3. Delete those that begin
        more than `max_bytes` before the end. Needs no sum over the table, and no correction when retention deletes.
        """
        params = {"size": callback.size_bytes}
        count = """INSERT INTO callback_totals (kind, bytes) VALUES ('unproven', :size)
            ON CONFLICT (kind) DO UPDATE SET bytes = callback_totals.bytes + :size"""
        position = {"unproven_position": f"{_UNPROVEN_BYTES} - :size"}
        insert = insert_row("callbacks", callback, computed=position)
        evict = f"""DELETE FROM callbacks WHERE id IN
            (SELECT id FROM callbacks WHERE unproven_position < {_UNPROVEN_BYTES} - :max_bytes
            ORDER BY unproven_position LIMIT {MAX_EVICTED}{self.database.skip_locked})"""
        return [
            Statement(sql=count, params=params),
            Statement(sql=insert.sql, params={**insert.params, **params}),
            Statement(sql=evict, params={"max_bytes": max_bytes}),
        ]

    async def get(self, callback_id: str) -> StoredCallback | None:
        sql = "SELECT * FROM callbacks WHERE id = :id"
        return await fetch_one_as(self.database, StoredCallback, sql, id=callback_id)

    async def list_newest(
        self,
        *,
        limit: int,
        before: tuple[float, str] | None = None,
        task_id: str | None = None,
        verification: str | None = None,
        provider: str | None = None,
    ) -> list[CallbackRecord]:
        """Return one page, newest first; before: (received_at, id) of the last row of the previous page."""
        return await fetch_page(
            self.database,
            CallbackRecord,
            "callbacks",
            moment="received_at",
            before=before,
            limit=limit,
            task_id=task_id,
            verification=verification,
            provider=provider,
        )

    async def has_accepted(self, task_id: str, attempt: int) -> bool:
        """Return whether an accepted callback for this attempt exists, processed or not."""
        sql = f"""SELECT 1 AS one FROM callbacks c
            WHERE c.task_id = :task_id AND c.attempt = :attempt AND {_IS_ACCEPTED} LIMIT 1"""
        return await self.database.fetch_one(sql, task_id=task_id, attempt=attempt) is not None

    async def count_missing(self, *, since: float, until: float, limit: int) -> dict[str, int]:
        """Count by provider the jobs that ended between two moments without a callback; at most `limit`.

        A check found their end although a callback was expected, and none has arrived since.
        """
        sql = f"""SELECT provider, count(*) AS n FROM
            (SELECT provider FROM attempts a WHERE a.learned_by = 'check'
            AND a.ended_at > :since AND a.ended_at <= :until AND NOT EXISTS
            (SELECT 1 FROM callbacks c WHERE c.task_id = a.task_id AND c.attempt = a.number AND {_IS_ACCEPTED})
            LIMIT :limit) due GROUP BY provider"""
        rows = await self.database.fetch(sql, since=since, until=until, limit=limit)
        counts: Counter[str] = Counter()
        for row in rows:
            counts[provider_of(row["provider"])] += row["n"]
        return dict(counts)

    async def tasks_with_unprocessed(self, limit: int) -> list[str]:
        """Return tasks with callbacks that are not processed yet."""
        sql = f"SELECT DISTINCT task_id FROM callbacks WHERE {_IS_UNPROCESSED} LIMIT :limit"
        rows = await self.database.fetch(sql, limit=limit)
        return [row["task_id"] for row in rows]

    async def list_unprocessed(self, task_id: str) -> list[StoredCallback]:
        """Return the unprocessed callbacks of a task, in the order of arrival."""
        sql = f"SELECT * FROM callbacks WHERE {_IS_UNPROCESSED} AND task_id = :task_id ORDER BY received_at, id"
        return await fetch_as(self.database, StoredCallback, sql, task_id=task_id)

    def mark_processed(self, callback: StoredCallback, now: float) -> Statement:
        """Mark the callback as processed; `Stale` if another process did."""
        return Statement(
            sql="UPDATE callbacks SET processed_at = :now WHERE id = :id AND processed_at IS NULL",
            params={"id": callback.id, "now": now},
            must_change=True,
        )

    async def delete_before(self, before: float, limit: int) -> int:
        """Delete at most `limit` processed callbacks received before `before`; return how many."""
        sql = f"""DELETE FROM callbacks WHERE id IN
            (SELECT id FROM callbacks WHERE received_at < :before AND processed_at IS NOT NULL
            ORDER BY received_at, id LIMIT :limit{self.database.skip_locked})"""
        return await self.database.execute(sql, before=before, limit=limit)

    def delete_of_expired(self, task_id: str) -> Statement:
        """Delete the processed callbacks of a task if it is expired; it follows the statement that expires the task."""
        state = "(SELECT t.state FROM tasks t WHERE t.id = callbacks.task_id)"
        return Statement(
            sql=f"DELETE FROM callbacks WHERE task_id = :id AND processed_at IS NOT NULL AND {state} = 'expired'",
            params={"id": task_id},
        )

    def delete_of_task(self, task_id: str) -> Statement:
        """Delete the callbacks of a task, processed or not."""
        return Statement(sql="DELETE FROM callbacks WHERE task_id = :id", params={"id": task_id})

    def mark_without_content(self, callback: StoredCallback, now: float) -> Statement:
        """Do the same as `mark_processed`, and delete the content, because its task is deleted."""
        return Statement(
            sql=f"""UPDATE callbacks SET processed_at = :now, {", ".join(f"{name} = :{name}" for name in NO_CONTENT)}
                WHERE id = :id AND processed_at IS NULL""",
            params={"id": callback.id, "now": now, **to_columns(NO_CONTENT)},
            must_change=True,
        )

    async def count_unprocessed(self, task_id: str) -> int:
        """Count the unprocessed callbacks of one task, to limit floods."""
        sql = f"SELECT count(*) AS n FROM callbacks WHERE {_IS_UNPROCESSED} AND task_id = :task_id"
        row: Any = await self.database.fetch_one(sql, task_id=task_id)
        return int(row["n"])
