"""Versions of tasks' rows, by which polls and waits see whether a task has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from storage.sql.database import Database
from storage.sql.rows import in_clause

MAX_TASKS_PER_READ: Final = 512


@dataclass
class TaskVersions:
    """Reads versions. Where a read waits for a server, those of one turn of the event loop are one read.

    It begins after the last of them was asked for, so each sees every change before its own request.
    """

    database: Database
    _ids: set[str] = field(default_factory=set)
    _next: asyncio.Task[dict[str, int]] | None = None
    """Reads `_ids`; starts in the next turn."""

    async def get(self, task_id: str) -> int | None:
        """Return the version, or None if there is no such task."""
        rows = self.database.fetch_at_once("SELECT version FROM tasks WHERE id = :id", id=task_id)
        if rows is not None:
            return int(rows[0][0]) if rows else None
        if self._next is None or len(self._ids) >= MAX_TASKS_PER_READ:
            self._ids = set()
            self._next = asyncio.create_task(self._read_next(self._ids), name="task-versions")
            self._next.add_done_callback(_retrieve_error)
        self._ids.add(task_id)
        return (await asyncio.shield(self._next)).get(task_id)

    async def _read_next(self, ids: set[str]) -> dict[str, int]:
        if ids is self._ids:
            self._next = None
        return await self.read_all(ids)

    async def read_all(self, task_ids: Collection[str]) -> dict[str, int]:
        """Return the versions of the tasks that there are; of `MAX_TASKS_PER_READ` at most."""
        # a power of two, so that there are few statements to prepare; an id may be there twice
        ids = [*task_ids]
        ids += ids[-1:] * ((1 << (len(ids) - 1).bit_length()) - len(ids))
        listed, params = in_clause(ids)
        rows = await self.database.fetch(f"SELECT id, version FROM tasks WHERE id IN ({listed})", **params)
        return {row["id"]: row["version"] for row in rows}


def _retrieve_error(reading: asyncio.Task[dict[str, int]]) -> None:
    """Let the loop log no error that all callers were cancelled before."""
    if not reading.cancelled():
        reading.exception()
