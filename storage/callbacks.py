"""Callback inbox: each stored callback with its verification, and whether it was processed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from storage.sql.database import Database, Statement
from storage.sql.rows import from_row


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

    headers, query: JSON. body: text. evidence: evidence, as JSON.
    """

    headers: str
    query: str
    body: str
    evidence: str


_SUMMARY_COLUMNS = ", ".join(f.name for f in fields(CallbackRecord))
_COLUMNS = tuple(f.name for f in fields(StoredCallback))
_IS_ACCEPTED = "h.verification = 'accept' AND h.replay_of IS NULL"


@dataclass(frozen=True)
class Callbacks:
    """Callbacks in the database."""

    database: Database

    def insert_callback(self, hook: StoredCallback) -> Statement:
        return Statement(
            sql=f"INSERT INTO callbacks ({', '.join(_COLUMNS)}) VALUES ({', '.join(':' + c for c in _COLUMNS)})",
            params={name: getattr(hook, name) for name in _COLUMNS},
        )

    async def get(self, hook_id: str) -> StoredCallback | None:
        row = await self.database.fetch_one("SELECT * FROM callbacks WHERE id = :id", id=hook_id)
        return from_row(StoredCallback, row) if row else None

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
        at, last = before or (9e18, "")
        wanted = {"task_id": task_id, "verification": verification, "provider": provider}
        only = {name: value for name, value in wanted.items() if value is not None}
        rows = await self.database.fetch(
            f"""SELECT {_SUMMARY_COLUMNS} FROM callbacks
                WHERE (received_at, id) < (:at, :last) {" ".join(f"AND {name} = :{name}" for name in only)}
                ORDER BY received_at DESC, id DESC LIMIT :limit""",
            at=at,
            last=last,
            limit=limit,
            **only,
        )
        return [from_row(CallbackRecord, row) for row in rows]

    async def has_accepted(self, task_id: str, attempt: int) -> bool:
        """Return whether an accepted callback for this attempt exists, processed or not."""
        row = await self.database.fetch_one(
            f"""SELECT 1 AS one FROM callbacks h
                WHERE h.task_id = :task_id AND h.attempt = :attempt AND {_IS_ACCEPTED} LIMIT 1""",
            task_id=task_id,
            attempt=attempt,
        )
        return row is not None

    async def count_missing(self, *, since: float, until: float, limit: int) -> dict[str, int]:
        """Count by provider the jobs that ended between two moments without a callback; at most `limit`.

        A check found their end although a callback was expected, and none has arrived since.
        """
        rows = await self.database.fetch(
            f"""SELECT provider, count(*) AS n FROM
                (SELECT provider FROM attempts a WHERE a.learned_by = 'check'
                AND a.ended_at > :since AND a.ended_at <= :until AND NOT EXISTS
                (SELECT 1 FROM callbacks h WHERE h.task_id = a.task_id AND h.attempt = a.number AND {_IS_ACCEPTED})
                LIMIT :limit) due GROUP BY provider""",
            since=since,
            until=until,
            limit=limit,
        )
        return {row["provider"]: row["n"] for row in rows}

    async def tasks_with_unprocessed(self, limit: int) -> list[str]:
        """Return tasks with callbacks that are not processed yet."""
        rows = await self.database.fetch(
            "SELECT DISTINCT task_id FROM callbacks WHERE processed_at IS NULL AND task_id IS NOT NULL LIMIT :limit",
            limit=limit,
        )
        return [row["task_id"] for row in rows]

    async def list_unprocessed(self, task_id: str) -> list[StoredCallback]:
        """Return the unprocessed callbacks of a task, in the order of arrival."""
        rows = await self.database.fetch(
            """SELECT * FROM callbacks WHERE task_id = :task_id AND processed_at IS NULL AND task_id IS NOT NULL
                ORDER BY received_at, id""",
            task_id=task_id,
        )
        return [from_row(StoredCallback, row) for row in rows]

    def mark_processed(self, hook: StoredCallback, now: float) -> Statement:
        """Mark the callback as processed; `Stale` if another process did."""
        return Statement(
            sql="UPDATE callbacks SET processed_at = :now WHERE id = :id AND processed_at IS NULL",
            params={"id": hook.id, "now": now},
            must_change=True,
        )

    async def delete_before(self, before: float, limit: int) -> int:
        """Delete at most `limit` processed callbacks received before `before`; return how many."""
        return await self.database.execute(
            f"""DELETE FROM callbacks WHERE id IN
                (SELECT id FROM callbacks WHERE received_at < :before AND processed_at IS NOT NULL
                ORDER BY received_at, id LIMIT :limit{self.database.skip_locked})""",
            before=before,
            limit=limit,
        )

    async def count_unprocessed(self, task_id: str) -> int:
        """Count the unprocessed callbacks of one task, to limit floods."""
        row: Any = await self.database.fetch_one(
            """SELECT count(*) AS n FROM callbacks
                WHERE task_id = :task_id AND processed_at IS NULL AND task_id IS NOT NULL""",
            task_id=task_id,
        )
        return int(row["n"])
