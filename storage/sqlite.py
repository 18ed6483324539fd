"""SQLite as it should be run: WAL, synchronous FULL, one writer with group commit, readers that never write.

One connection writes and checkpoints. Two that do can lose data in SQLite 3.7.0 to 3.51.2 (the WAL-reset bug),
and a second writer only waits for the first one anyway.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from storage.database import Bell, NoSuchTable, Outcome, Row, Stale, Statement, StorageError, StorageFull
from storage.wakes import Wakes

T = TypeVar("T")
MAX_GROUP = 256
WAL_LIMIT_BYTES = 64 * 2**20
OPEN_TRIES = 50
OPEN_PAUSE = 0.1


class _Connection(aiosqlite.Connection):
    """aiosqlite's thread, which also runs a whole function of ours in one hop instead of a hop per statement."""

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        result: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return result

    @classmethod
    async def to(cls, path: Path, pragmas: str) -> _Connection:
        connection = cls(lambda: _connect(path, pragmas), iter_chunk_size=64)
        try:
            await connection
        except BaseException:
            # aiosqlite tells its thread to end and does not wait for it
            await asyncio.to_thread(connection._thread.join)
            raise
        return connection


@dataclass(frozen=True)
class _Write:
    statements: Sequence[Statement]
    wake: Sequence[str]
    done: asyncio.Future[list[Outcome]]
    settled: asyncio.Event


def _dict_row(cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, values, strict=True)}


def _connect(path: Path, pragmas: str) -> sqlite3.Connection:
    # autocommit mode: transactions begin and end where we say so
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.row_factory = _dict_row
    try:
        _set_up(connection, f"PRAGMA busy_timeout=5000; PRAGMA mmap_size=0; {pragmas}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection, pragmas: str) -> None:
    """Several starters at once: going over to WAL does not wait for the others by itself."""
    for left in reversed(range(OPEN_TRIES)):
        try:
            connection.executescript(pragmas)
        except sqlite3.OperationalError as error:
            if not left or not _is_busy(error):
                raise
            time.sleep(OPEN_PAUSE)
        else:
            return


WRITER = f"""PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=1000;
    PRAGMA journal_size_limit={WAL_LIMIT_BYTES}; PRAGMA temp_store=MEMORY;"""
READER = "PRAGMA query_only=ON; PRAGMA cache_size=-65536;"


def _apply(connection: sqlite3.Connection, statements: Sequence[Statement]) -> list[Outcome]:
    return [_run(connection, statement) for statement in statements]


def _run(connection: sqlite3.Connection, statement: Statement) -> Outcome:
    cursor = connection.execute(statement.sql, dict(statement.params))
    rows = cursor.fetchall()
    count = len(rows) if cursor.description else cursor.rowcount
    if statement.must_change and count == 0:
        raise Stale
    return Outcome(count=count, rows=rows)


def _apply_group(connection: sqlite3.Connection, group: Sequence[_Write]) -> list[list[Outcome] | Exception]:
    """Every write in a savepoint of its own, all of them in one commit: one fsync for everybody who waits."""
    results: list[list[Outcome] | Exception] = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        for write in group:
            connection.execute("SAVEPOINT one")
            try:
                results.append(_apply(connection, write.statements))
            except Exception as error:  # whatever it is, it is this write's alone
                if not connection.in_transaction:  # a full disk rolls the whole transaction back
                    raise
                connection.execute("ROLLBACK TO one")
                results.append(error)
            connection.execute("RELEASE one")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return results


def _commit(connection: sqlite3.Connection, group: Sequence[_Write]) -> list[list[Outcome] | Exception]:
    """The group in one transaction; if that fails as a whole, one by one, so that nobody pays for a neighbour."""
    try:
        return _apply_group(connection, group)
    except sqlite3.Error as error:
        if len(group) == 1 or _is_busy(error):  # each of them would only wait for the same lock again
            return [error] * len(group)
        return [_commit(connection, [write])[0] for write in group]


def _is_busy(error: sqlite3.Error) -> bool:
    return (getattr(error, "sqlite_errorname", "") or "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


_CURES = {
    "SQLITE_READONLY": "let this user write to its file and its folder",
    "SQLITE_CANTOPEN": "let this user read and write its file and its folder",
    "SQLITE_PERM": "let this user read and write its file and its folder",
    "SQLITE_AUTH": "let this user read and write its file and its folder",
    "SQLITE_CORRUPT": "it is damaged; restore it from a backup, or move it away to begin anew",
    "SQLITE_NOTADB": "it is no database; restore it from a backup, or move it away to begin anew",
    "SQLITE_BUSY": "another process holds it; end that one, or try again",
    "SQLITE_LOCKED": "another process holds it; end that one, or try again",
    "SQLITE_IOERR": "its disk is failing; check it, and the kernel's log",
}


def _cure(name: str) -> str:
    """By the error's family: SQLITE_CANTOPEN_ISDIR is of SQLITE_CANTOPEN."""
    return _CURES.get("_".join(name.split("_")[:2]), "look at its disk, and whether DATABASE_URL is right")


def _told(error: Exception) -> Exception:
    """SQLite's error in the words of the contract."""
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "") or ""
        if name == "SQLITE_FULL" or name.startswith("SQLITE_IOERR_WRITE"):
            return StorageFull("the disk of the database is full: free some space")
        if "no such table" in str(error):
            return NoSuchTable("the database has no tables yet: run broker db upgrade")
        return StorageError(f"the database cannot do it now ({name or 'error'}, {error}): {_cure(name)}")
    return error


class SqliteDatabase:
    """A database in one file. `async with SqliteDatabase(path)` opens it, or use `await open()` and `await close()`."""

    skip_locked = ""
    exclusive = "SELECT 1 AS alone"  # there is one writer at a time anyway

    def __init__(self, path: Path) -> None:
        self.path = path
        self._wakes = Wakes()
        self._queue: deque[_Write] = deque()
        self._writing: list[_Write] = []
        self._arrived = asyncio.Event()
        self._closing = False

    async def open(self) -> SqliteDatabase:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            await self._connect()
        except (OSError, sqlite3.Error) as error:
            name = getattr(error, "sqlite_errorname", "") or ""
            raise StorageError(f"cannot open the database {self.path.name} ({error}): {_cure(name)}") from error
        self._group_commit = asyncio.create_task(self._write_groups(), name="sqlite-writer")
        return self

    async def _connect(self) -> None:
        async with AsyncExitStack() as opened:
            self._writer = await _Connection.to(self.path, WRITER)
            opened.push_async_callback(self._writer.close)
            self._reader = await _Connection.to(self.path, READER)
            opened.push_async_callback(self._reader.close)
            self._inline = await asyncio.to_thread(_connect, self.path, READER)
            opened.callback(self._inline.close)
            self._opened = opened.pop_all()

    async def __aenter__(self) -> SqliteDatabase:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        try:
            rows: list[Row] = await self._reader.run(lambda connection: connection.execute(sql, params).fetchall())
        except sqlite3.Error as error:
            raise _told(error) from error
        return rows

    async def point(self, sql: str, **params: Any) -> Row | None:
        try:
            row: Row | None = self._inline.execute(sql, params).fetchone()
        except sqlite3.Error as error:
            raise _told(error) from error
        return row

    async def execute(self, sql: str, **params: Any) -> int:
        return (await self.transact(Statement(sql=sql, params=params)))[0].count

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        if self._closing:
            raise StorageError("the database is closed")
        if not statements:
            return []
        write = _Write(statements, wake, asyncio.get_running_loop().create_future(), asyncio.Event())
        self._queue.append(write)
        self._arrived.set()
        return await write.done

    async def settled(self) -> None:
        await asyncio.gather(*[write.settled.wait() for write in (*self._queue, *self._writing)])

    def wake(self, *channels: str) -> None:
        self._wakes.wake(*channels)

    def listen(self, channel: str) -> AbstractContextManager[Bell]:
        return self._wakes.listen(channel)

    async def check(self) -> None:
        """Refuse to work on a damaged file. Raises `StorageError` with the cure."""
        rows = await self.fetch("PRAGMA quick_check(1)")
        verdict = next(iter(rows[0].values()))
        if verdict != "ok":
            raise StorageError(
                f"{self.path.name} is damaged ({verdict}): restore it from a backup; it is left as it is"
            )

    async def now(self) -> float:
        return time.time()

    async def facts(self) -> dict[str, str]:
        log = self.path.with_name(self.path.name + "-wal")
        waiting = log.stat().st_size if log.exists() else 0
        return {
            "database": str(self.path.resolve()),
            "SQLite": sqlite3.sqlite_version,
            "size": f"{self.path.stat().st_size / 2**20:.1f} MiB, {waiting / 2**20:.1f} MiB more in its log",
        }

    async def close(self) -> None:
        """Everything handed in before is written first."""
        if self._closing:
            return
        self._closing = True
        self._arrived.set()
        await self._group_commit
        await self._opened.aclose()

    async def _write_groups(self) -> None:
        while self._queue or not self._closing:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            group = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GROUP))]
            await self._write(group)

    async def _write(self, group: list[_Write]) -> None:
        self._writing = group
        try:
            results = await self._writer.run(lambda connection: _commit(connection, group))
        except Exception as error:  # the thread itself failed: nobody may wait for ever
            results = [error] * len(group)
        for write, result in zip(group, results, strict=True):
            self._settle(write, result)

    def _settle(self, write: _Write, result: list[Outcome] | Exception) -> None:
        write.settled.set()
        if isinstance(result, Exception):
            if not write.done.done():
                write.done.set_exception(_told(result))
            return
        self._wakes.wake(*write.wake)
        if not write.done.done():
            write.done.set_result(result)


def sqlite_path(url: str) -> Path:
    """The file behind `sqlite:///relative` or `sqlite:////absolute`."""
    match = re.fullmatch(r"sqlite:///(.+)", url)
    if match is None:
        raise ValueError("a SQLite address looks like sqlite:///data/broker.db")
    return Path(match[1])
