"""Callback inbox: each stored callback with its verification, and whether it was processed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from storage.sql.database import Database, Statement
from storage.sql.rows import record


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One callback without its content.

    verdict: `accept`, `recheck`, `reject`, `unknown` or `malformed`. status: our HTTP answer. digested_at: when it
    was processed; None until then. job_ended_at: when the job ended by the
    provider's own clock, as far as the body says so. replay_of: the callback that this one repeats on request.
    """

    id: str
    provider: str
    task_id: str | None = None
    attempt: int | None = None
    verdict: str
    status: int
    reason: str
    received_at: float
    digested_at: float | None = None
    job_ended_at: float | None = None
    replay_of: str | None = None

    @property
    def is_news(self) -> bool:
        """Return whether a task is to process it."""
        return self.verdict in {"accept", "recheck"}


@dataclass(frozen=True, kw_only=True)
class Hook(Entry):
    """One callback as received, without secrets.

    headers, query: JSON. body: text. proofs: evidence, as JSON.
    """

    headers: str
    query: str
    body: str
    proofs: str


_LINE = ", ".join(f.name for f in fields(Entry))
_COLUMNS = tuple(f.name for f in fields(Hook))
_CALLED = "h.verdict = 'accept' AND h.replay_of IS NULL"


@dataclass(frozen=True)
class Hooks:
    """Callbacks in the database."""

    database: Database

    def adding(self, hook: Hook) -> Statement:
        return Statement(
            sql=f"INSERT INTO callbacks ({', '.join(_COLUMNS)}) VALUES ({', '.join(':' + c for c in _COLUMNS)})",
            params={name: getattr(hook, name) for name in _COLUMNS},
        )

    async def get(self, hook_id: str) -> Hook | None:
        row = await self.database.point("SELECT * FROM callbacks WHERE id = :id", id=hook_id)
        return record(Hook, row) if row else None

    async def newest(
        self,
        *,
        limit: int,
        before: tuple[float, str] | None = None,
        task_id: str | None = None,
        verdict: str | None = None,
        provider: str | None = None,
    ) -> list[Entry]:
        """Return one page, newest first; before: (received_at, id) of the last row of the previous page."""
        at, last = before or (9e18, "")
        wanted = {"task_id": task_id, "verdict": verdict, "provider": provider}
        only = {name: value for name, value in wanted.items() if value is not None}
        rows = await self.database.fetch(
            f"""SELECT {_LINE} FROM callbacks
                WHERE (received_at, id) < (:at, :last) {" ".join(f"AND {name} = :{name}" for name in only)}
                ORDER BY received_at DESC, id DESC LIMIT :limit""",
            at=at,
            last=last,
            limit=limit,
            **only,
        )
        return [record(Entry, row) for row in rows]

    async def believed(self, task_id: str, attempt: int) -> bool:
        """Return whether an accepted callback for this attempt exists, processed or not."""
        row = await self.database.point(
            f"""SELECT 1 AS one FROM callbacks h
                WHERE h.task_id = :task_id AND h.attempt = :attempt AND {_CALLED} LIMIT 1""",
            task_id=task_id,
            attempt=attempt,
        )
        return row is not None

    async def missing(self, *, since: float, until: float, limit: int) -> dict[str, int]:
        """Count by provider the jobs that ended between two moments without a callback; at most `limit`.

        A check found their end although a callback was expected, and none has arrived since.
        """
        rows = await self.database.fetch(
            f"""SELECT provider, count(*) AS n FROM
                (SELECT provider FROM attempts a WHERE a.learned_by = 'question'
                AND a.ended_at > :since AND a.ended_at <= :until AND NOT EXISTS
                (SELECT 1 FROM callbacks h WHERE h.task_id = a.task_id AND h.attempt = a.number AND {_CALLED})
                LIMIT :limit) due GROUP BY provider""",
            since=since,
            until=until,
            limit=limit,
        )
        return {row["provider"]: row["n"] for row in rows}

    async def tasks_with_news(self, limit: int) -> list[str]:
        """Return tasks with callbacks that are not processed yet."""
        rows = await self.database.fetch(
            "SELECT DISTINCT task_id FROM callbacks WHERE digested_at IS NULL AND task_id IS NOT NULL LIMIT :limit",
            limit=limit,
        )
        return [row["task_id"] for row in rows]

    async def unread(self, task_id: str) -> list[Hook]:
        """Return the unprocessed callbacks of a task, in the order of arrival."""
        rows = await self.database.fetch(
            """SELECT * FROM callbacks WHERE task_id = :task_id AND digested_at IS NULL AND task_id IS NOT NULL
                ORDER BY received_at, id""",
            task_id=task_id,
        )
        return [record(Hook, row) for row in rows]

    def digesting(self, hook: Hook, now: float) -> Statement:
        """Mark the callback as processed; `Stale` if another process did."""
        return Statement(
            sql="UPDATE callbacks SET digested_at = :now WHERE id = :id AND digested_at IS NULL",
            params={"id": hook.id, "now": now},
            must_change=True,
        )

    async def forget(self, before: float, limit: int) -> int:
        """Delete at most `limit` processed callbacks received before `before`; return how many."""
        return await self.database.execute(
            f"""DELETE FROM callbacks WHERE id IN
                (SELECT id FROM callbacks WHERE received_at < :before AND digested_at IS NOT NULL
                ORDER BY received_at, id LIMIT :limit{self.database.skip_locked})""",
            before=before,
            limit=limit,
        )

    async def count_for(self, task_id: str) -> int:
        """Count the unprocessed callbacks of one task, to limit floods."""
        row: Any = await self.database.point(
            """SELECT count(*) AS n FROM callbacks
                WHERE task_id = :task_id AND digested_at IS NULL AND task_id IS NOT NULL""",
            task_id=task_id,
        )
        return int(row["n"])
