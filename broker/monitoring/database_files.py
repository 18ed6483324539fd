"""Watch over the files of the database: reports that they were removed or replaced while this process has them open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from broker.clock import seconds_to_beat
from broker.logs import log
from storage.errors import DatabaseReplaced, StorageError
from storage.sql.database import Database

INTERVAL_SECONDS: Final = 10.0


@asynccontextmanager
async def watch_database_files(
    database: Database, *, interval_seconds: float = INTERVAL_SECONDS
) -> AsyncIterator[None]:
    """Check while the block runs, and log each loss and each return once. Writes are refused by the database itself."""
    watching = asyncio.create_task(_watch(database, interval_seconds), name="database_files")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _watch(database: Database, interval_seconds: float) -> None:
    is_lost = False
    while True:
        try:
            await database.check_files()
        except StorageError as error:
            if not is_lost:
                action = "database_replaced" if isinstance(error, DatabaseReplaced) else "database_damaged"
                log.critical("NOTHING IS STORED", action=action, why=str(error))
            is_lost = True
        else:
            if is_lost:
                log.info("the files of the database are back", action="database_returned")
            is_lost = False
        await asyncio.sleep(seconds_to_beat(interval_seconds))
