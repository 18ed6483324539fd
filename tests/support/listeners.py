"""A database whose listeners and reads can be counted, so that a test can wait for a request that waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from broker.bootstrap import database_for
from broker.settings import Settings
from storage.sql.database import Database, Row


@dataclass(kw_only=True)
class Listeners:
    """The number of listeners of each channel now, and the parameters of each read so far."""

    counts: Counter[str] = field(default_factory=Counter)
    reads: list[Mapping[str, Any]] = field(default_factory=list)

    def reads_of(self, task_id: str) -> int:
        """Return the number of reads that name the task, and forget all reads."""
        count = sum(task_id in params.values() for params in self.reads)
        self.reads.clear()
        return count

    @asynccontextmanager
    async def open_database(self, settings: Settings) -> AsyncIterator[Database]:
        """Open the configured database and count its listeners."""
        async with database_for(settings) as database:
            yield cast(Database, _CountedDatabase(database, self))


class _CountedDatabase:
    def __init__(self, database: Database, listeners: Listeners) -> None:
        self._database = database
        self._listeners = listeners

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        self._listeners.reads.append(params)
        return await self._database.fetch(sql, **params)

    async def fetch_one(self, sql: str, **params: Any) -> Row | None:
        self._listeners.reads.append(params)
        return await self._database.fetch_one(sql, **params)

    def fetch_at_once(self, sql: str, **params: Any) -> Sequence[tuple[Any, ...]] | None:
        rows: Sequence[tuple[Any, ...]] | None = self._database.fetch_at_once(sql, **params)
        if rows is not None:
            self._listeners.reads.append(params)
        return rows

    @contextmanager
    def listen(self, channel: str) -> Iterator[Any]:
        with self._database.listen(channel) as subscription:
            self._listeners.counts[channel] += 1
            try:
                yield subscription
            finally:
                self._listeners.counts[channel] -= 1
