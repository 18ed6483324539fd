"""A database whose listeners can be counted, so that a test can wait for a request that waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from broker.bootstrap import database_for
from broker.settings import Settings
from storage.sql.database import Database


@dataclass(kw_only=True)
class Listeners:
    """The number of listeners of each channel now."""

    counts: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def open_database(self, settings: Settings) -> AsyncIterator[Database]:
        """Open the configured database and count its listeners."""
        async with database_for(settings) as database:
            yield cast(Database, _CountedDatabase(database, self.counts))


class _CountedDatabase:
    def __init__(self, database: Database, counts: Counter[str]) -> None:
        self._database = database
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @contextmanager
    def listen(self, channel: str) -> Iterator[Any]:
        with self._database.listen(channel) as subscription:
            self._counts[channel] += 1
            try:
                yield subscription
            finally:
                self._counts[channel] -= 1
