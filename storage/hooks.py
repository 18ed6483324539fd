"""The inbox of callbacks: what arrived, what it proved, and whether its news was already read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from storage.database import Database, Statement, record


@dataclass(frozen=True, kw_only=True)
class Hook:
    """One callback as it came, secrets removed.

    verdict: `believe`, `ask`, `refuse`, `unknown` or `malformed`. status: our HTTP answer. headers, query: JSON.
    body: as text. digested_at: when its news was taken in; None while it is still to be read.
    """

    id: str
    provider: str
    task_id: str | None = None
    attempt: int | None = None
    verdict: str
    status: int
    reason: str
    headers: str
    query: str
    body: str
    received_at: float
    digested_at: float | None = None


_COLUMNS = tuple(f.name for f in fields(Hook))


@dataclass(frozen=True)
class Hooks:
    """The inbox at rest."""

    database: Database

    def adding(self, hook: Hook) -> Statement:
        return Statement(
            sql=f"INSERT INTO hooks ({', '.join(_COLUMNS)}) VALUES ({', '.join(':' + c for c in _COLUMNS)})",
            params={name: getattr(hook, name) for name in _COLUMNS},
        )

    async def get(self, hook_id: str) -> Hook | None:
        row = await self.database.point("SELECT * FROM hooks WHERE id = :id", id=hook_id)
        return record(Hook, row) if row else None

    async def newest(self, *, limit: int, task_id: str | None = None) -> list[Hook]:
        rows = await self.database.fetch(
            """SELECT * FROM hooks WHERE :task_id = '' OR task_id = :task_id
                ORDER BY received_at DESC, id DESC LIMIT :limit""",
            limit=limit,
            task_id=task_id or "",
        )
        return [record(Hook, row) for row in rows]

    async def tasks_with_news(self, limit: int) -> list[str]:
        """Tasks whose callbacks were acknowledged and not read yet."""
        rows = await self.database.fetch(
            "SELECT DISTINCT task_id FROM hooks WHERE digested_at IS NULL AND task_id IS NOT NULL LIMIT :limit",
            limit=limit,
        )
        return [row["task_id"] for row in rows]

    async def unread(self, task_id: str) -> list[Hook]:
        """In the order of arrival."""
        rows = await self.database.fetch(
            """SELECT * FROM hooks WHERE task_id = :task_id AND digested_at IS NULL AND task_id IS NOT NULL
                ORDER BY received_at, id""",
            task_id=task_id,
        )
        return [record(Hook, row) for row in rows]

    def digesting(self, hook: Hook, now: float) -> Statement:
        """Its news is taken in; `Stale` if somebody else did so."""
        return Statement(
            sql="UPDATE hooks SET digested_at = :now WHERE id = :id AND digested_at IS NULL",
            params={"id": hook.id, "now": now},
            must_change=True,
        )

    async def forget(self, before: float, limit: int) -> int:
        """Remove callbacks that came before `before` and were read, at most `limit`; how many."""
        return await self.database.execute(
            f"""DELETE FROM hooks WHERE id IN
                (SELECT id FROM hooks WHERE received_at < :before AND digested_at IS NOT NULL
                ORDER BY received_at, id LIMIT :limit{self.database.skip_locked})""",
            before=before,
            limit=limit,
        )

    async def count_for(self, task_id: str) -> int:
        """Callbacks of one task that still wait to be read; a flood is cut off by it."""
        row: Any = await self.database.point(
            "SELECT count(*) AS n FROM hooks WHERE task_id = :task_id AND digested_at IS NULL AND task_id IS NOT NULL",
            task_id=task_id,
        )
        return int(row["n"])
