"""The queue of each provider: round robin between callers, and by priority within one caller's tasks.

The caller that was served longest ago is next, so an order for many images delays another caller's single image by one
turn; before that, the caller with the fewest orders in preparation, which can take minutes. Nothing but the tasks
themselves records the turns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.sql.database import Database
from storage.tasks import Lease, Task, claim_rows

MAX_CALLERS = 100
"""Callers of one statement; each adds a branch to it."""
MAX_LISTED_CALLERS = 1000
"""Callers whose tasks are listed."""

_QUEUED = "state = 'queued' AND provider = :provider"
_FREE = "due_at <= :now AND (lease_until <= :now OR leased_by = :holder)"
_ORDER = "priority DESC, due_at, id"
# one index seek per caller, however many tasks it has in the queue
_CALLERS = f"""WITH RECURSIVE callers(name) AS (
        SELECT min(caller) FROM tasks WHERE {_QUEUED}
        UNION ALL SELECT (SELECT min(caller) FROM tasks WHERE {_QUEUED} AND caller > callers.name)
        FROM callers WHERE callers.name IS NOT NULL
    )
    SELECT name FROM callers WHERE name IS NOT NULL"""
_SERVED_AT = """coalesce((SELECT max(sent_at) FROM tasks
    WHERE provider = :provider AND caller = name AND sent_at IS NOT NULL), 0), name"""
# claimed and not sent: their references are being uploaded
_PREPARED = f"""(SELECT count(*) FROM tasks
    WHERE {_QUEUED} AND caller = name AND lease_until > 0 AND lease_until > :now)"""


@dataclass(frozen=True)
class TaskQueue:
    """Queued tasks by provider."""

    database: Database

    async def claim(self, provider: str, *, now: float, lease: Lease, limit: int) -> list[Task]:
        """Lease up to `limit` due tasks of a provider, one of each caller in turn."""
        if limit <= 0:
            return []
        due = f"{_CALLERS} AND EXISTS (SELECT 1 FROM tasks WHERE {_QUEUED} AND caller = name AND {_FREE})"
        order = f"{_PREPARED}, {_SERVED_AT}"
        most = min(limit, MAX_CALLERS)
        callers = await self._callers(due, order, provider, most, now=now, holder=lease.holder)
        if not callers:
            return []
        heads, params = _heads(callers, f"AND {_FREE}")
        sql = f"""heads AS MATERIALIZED ({heads}),
            due AS MATERIALIZED (SELECT tasks.id FROM tasks JOIN heads ON heads.id = tasks.id
                WHERE state = 'queued' AND {_FREE} ORDER BY nth, place LIMIT :limit{self.database.skip_locked})"""
        return await claim_rows(self.database, sql, now=now, lease=lease, limit=limit, provider=provider, **params)

    async def has_waiting(self, provider: str, now: float) -> bool:
        """Return whether a due task of a provider is free."""
        sql = f"SELECT 1 AS one FROM tasks WHERE {_QUEUED} AND due_at <= :now AND lease_until <= :now LIMIT 1"
        rows = self.database.fetch_at_once(sql, provider=provider, now=now)
        return bool(await self.database.fetch(sql, provider=provider, now=now) if rows is None else rows)

    async def claim_movable(
        self, provider: str, others: Sequence[str], *, now: float, lease: Lease, limit: int
    ) -> list[Task]:
        """Lease up to `limit` due tasks of a provider that one of these others may serve too, oldest first."""
        patterns = {f"other{number}": f'%"{name}"%' for number, name in enumerate(others)}
        movable = " OR ".join(f"candidates LIKE :{name}" for name in patterns)
        sql = f"""due AS MATERIALIZED (SELECT id FROM tasks WHERE {_QUEUED} AND ({movable}) AND {_FREE}
            ORDER BY due_at, id LIMIT :limit{self.database.skip_locked})"""
        return await claim_rows(self.database, sql, now=now, lease=lease, limit=limit, provider=provider, **patterns)

    async def list_providers(self) -> list[str]:
        """Return the providers that have queued tasks, configured or not."""
        rows = await self.database.fetch(
            """WITH RECURSIVE providers(name) AS (
                SELECT min(provider) FROM tasks WHERE state = 'queued'
                UNION ALL SELECT (SELECT min(provider) FROM tasks WHERE state = 'queued' AND provider > providers.name)
                FROM providers WHERE providers.name IS NOT NULL
            )
            SELECT name FROM providers WHERE name IS NOT NULL"""
        )
        return [row["name"] for row in rows]

    async def list_own_lanes(self, *, after: str, now: float, limit: int) -> dict[str, float]:
        """Return accounts of users that have queued tasks, by name, and when the first one without a lease is due.

        after: the last name of the page before. One index seek per account, however many tasks it has in the queue.
        """
        own = "state = 'queued' AND provider LIKE '%@%'"
        rows = await self.database.fetch(
            f"""WITH RECURSIVE lanes(name, place) AS (
                SELECT (SELECT min(provider) FROM tasks WHERE {own} AND provider > :after), 1
                UNION ALL SELECT (SELECT min(provider) FROM tasks WHERE {own} AND provider > lanes.name), place + 1
                FROM lanes WHERE lanes.name IS NOT NULL AND place < :limit
            )
            SELECT name, (SELECT due_at FROM tasks WHERE {own} AND provider = lanes.name AND lease_until <= :now
                ORDER BY due_at, id LIMIT 1) AS due_at
            FROM lanes WHERE name IS NOT NULL ORDER BY place""",
            after=after,
            now=now,
            limit=limit,
        )
        return {row["name"]: math.inf if row["due_at"] is None else row["due_at"] for row in rows}

    async def list_ids(self, provider: str, limit: int) -> list[str]:
        """Return the ids of a provider's queued tasks, in the order of submission."""
        callers = await self._callers(_CALLERS, _SERVED_AT, provider, min(limit, MAX_LISTED_CALLERS))
        turns: list[tuple[int, int, str]] = []
        for start in range(0, len(callers), MAX_CALLERS):
            heads, params = _heads(callers[start : start + MAX_CALLERS], "")
            sql = f"SELECT id, nth, place FROM ({heads}) AS heads ORDER BY nth, place LIMIT :limit"
            rows = await self.database.fetch(sql, provider=provider, limit=limit, **params)
            turns += [(row["nth"], start + row["place"], row["id"]) for row in rows]
        return [task_id for *_, task_id in sorted(turns)[:limit]]

    async def _callers(self, sql: str, order: str, provider: str, limit: int, **params: Any) -> list[str]:
        """Return callers with queued tasks, in this order."""
        rows = await self.database.fetch(
            f"{sql} ORDER BY {order} LIMIT :limit", provider=provider, limit=limit, **params
        )
        return [row["name"] for row in rows]


def _heads(callers: Sequence[str], condition: str) -> tuple[str, dict[str, str]]:
    """Return the query of the first tasks of each caller, numbered by turn, and its parameters."""
    branches = [
        f"""SELECT id, {place} AS place, row_number() OVER (ORDER BY {_ORDER}) AS nth FROM (
            SELECT id, priority, due_at FROM tasks WHERE {_QUEUED} AND caller = :caller{place} {condition}
            ORDER BY {_ORDER} LIMIT :limit) AS of_caller{place}"""
        for place in range(len(callers))
    ]
    return " UNION ALL ".join(branches), {f"caller{place}": caller for place, caller in enumerate(callers)}
