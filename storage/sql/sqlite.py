"""SQLite database: WAL, synchronous FULL, one writer with group commit, readers that cannot write.

One connection writes and checkpoints. Two that do can lose data in SQLite 3.7.0 to 3.51.2 (the WAL-reset bug),
and a second writer would only wait for the first one.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite

from storage.errors import StorageError
from storage.sql.database import Outcome, Row, Statement, to_dicts
from storage.sql.inline_reader import InlineReader
from storage.sql.integrity import IntegrityCheck
from storage.sql.pubsub import LocalChannels, Subscription
from storage.sql.row_changes import ChangedRows, RowChanges
from storage.sql.sqlite_errors import find_cure, storage_error
from storage.sql.writer.connections import READER_PRAGMAS, REPORT_PRAGMAS, open_connection
from storage.sql.writer.group_commit import GroupCommitWriter
from storage.sql.writer.group_writer import GroupWriter
from storage.sql.writer.hosts import WriterProcess, WriterThread
from storage.sql.writer.row_recorder import trigger_statements
from storage.sql.writer.thread_turns import ThreadTurns


class SqliteDatabase:
    """Database in one file. `async with SqliteDatabase(path)` opens it.

    spends_reserve: every write may use the disk space that is kept for outcomes; for a process that frees space.
    own_process: writes are done by a child process, not by a thread, which would fight with a busy event loop for the
    GIL. It costs the memory of a process. on_loss: called when that process has ended unasked.
    """

    skip_locked = ""
    exclusive = "SELECT 1 AS alone"  # there is one writer at a time anyway

    def __init__(
        self,
        path: Path,
        *,
        spends_reserve: bool = False,
        own_process: bool = False,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self._channels = LocalChannels()
        host = (
            WriterProcess(path, spends_reserve=spends_reserve)
            if own_process
            else WriterThread(GroupWriter(path, spends_reserve=spends_reserve))
        )
        self._writer = GroupCommitWriter(
            host, on_changes=self._report_changes, on_loss=on_loss, notify=self._channels.notify
        )
        self._turns = ThreadTurns()
        self._integrity = IntegrityCheck(path, on_damage=self._writer.refuse)
        self._changes: RowChanges | None = None
        self._closed = False

    async def __aenter__(self) -> SqliteDatabase:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            await self._connect()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot open the database {self.path.name} ({error}): {find_cure(error)}") from error
        return self

    async def _connect(self) -> None:
        reader = partial(open_connection, self.path, READER_PRAGMAS)
        async with AsyncExitStack() as opened:
            await self._writer.open()
            opened.push_async_callback(self._writer.close)
            self._reader = await opened.enter_async_context(aiosqlite.Connection(reader, iter_chunk_size=64))
            self._inline = await opened.enter_async_context(InlineReader(reader))
            # the last connection to a file removes its log, which a writer that starts again would miss
            opened.push_async_callback(self._writer.flush)
            self._opened = opened.pop_all()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        try:
            with self._turns.awaited():
                return to_dicts(list(await self._reader.execute_fetchall(sql, params)))
        except sqlite3.Error as error:
            raise storage_error(error) from error

    async def fetch_report(self, sql: str, **params: Any) -> list[Row]:
        """Read with a connection for this query alone: few ask for reports, and an open one costs a thread."""

        def read() -> list[Row]:
            with closing(open_connection(self.path, REPORT_PRAGMAS)) as connection:
                return to_dicts(connection.execute(sql, params).fetchall())

        try:
            return await asyncio.to_thread(read)
        except sqlite3.Error as error:
            raise storage_error(error) from error

    async def fetch_one(self, sql: str, **params: Any) -> Row | None:
        row = self._inline.fetch_one(sql, params)
        return to_dicts([row])[0] if row else None

    def fetch_at_once(self, sql: str, **params: Any) -> Sequence[tuple[Any, ...]] | None:
        return self._inline.fetch_in_turn(sql, params)

    async def execute(self, sql: str, **params: Any) -> int:
        return (await self.transact(Statement(sql=sql, params=params)))[0].count

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        if self._closed:
            raise StorageError("the database is closed")
        if not statements:
            return []
        try:
            return await self._writer.submit(statements, wake)
        except sqlite3.Error as error:
            raise storage_error(error) from error

    async def flush(self) -> None:
        await self._writer.flush()

    async def track_changes(self, table: str, *, but: Collection[str]) -> RowChanges | None:
        rows = await self.fetch("SELECT name FROM pragma_table_info(:table)", table=table)
        columns = [row["name"] for row in rows if row["name"] not in but]
        try:
            await self._writer.install(trigger_statements(table, columns))
        except sqlite3.Error as error:
            raise storage_error(error) from error
        self._changes = RowChanges(self._writer.counts, self._inline)
        return self._changes

    def _report_changes(self, changed: ChangedRows) -> None:
        if self._changes is not None:
            self._changes.report(changed)

    def notify(self, *channels: str) -> None:
        self._channels.notify(*channels)

    def listen(self, channel: str) -> AbstractContextManager[Subscription]:
        return self._channels.listen(channel)

    async def check(self, *, patience_seconds: float | None = None) -> None:
        await self._integrity.wait(patience_seconds)

    async def check_files(self) -> None:
        await asyncio.to_thread(self._writer.check_files)

    async def read_clock(self) -> float:
        return time.time()

    async def describe(self) -> dict[str, str]:
        log = self.path.with_name(self.path.name + "-wal")
        log_bytes = log.stat().st_size if log.exists() else 0
        return {
            "database": str(self.path.resolve()),
            "SQLite": sqlite3.sqlite_version,
            "size": f"{self.path.stat().st_size / 2**20:.1f} MiB, {log_bytes / 2**20:.1f} MiB more in its log",
        }

    async def close(self) -> None:
        """Write all that was handed in, then close."""
        if self._closed:
            return
        self._closed = True
        await self._integrity.stop()
        await self._opened.aclose()


def sqlite_path(url: str) -> Path:
    """Return the file of `sqlite:///relative` or `sqlite:////absolute`."""
    match = re.fullmatch(r"sqlite:///(.+)", url)
    if match is None:
        raise ValueError("a SQLite address looks like sqlite:///data/broker.db")
    return Path(match[1])
