"""Writer thread of a SQLite file: one connection, one transaction for all writes that wait at the same time.

A commit costs one fsync, however many writes are in it, so writes that arrive during a commit share the next one.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeAlias

from storage.sql.database import Outcome, Stale, Statement

MAX_WRITES_PER_COMMIT = 256

Result: TypeAlias = list[Outcome] | Exception


@dataclass(frozen=True, kw_only=True)
class Write:
    """One transaction to be written.

    done: its outcomes, set in the event loop. after_commit: called in the event loop before `done` is set.
    """

    statements: Sequence[Statement]
    done: asyncio.Future[list[Outcome]]
    after_commit: Callable[[], None]


class GroupCommitWriter:
    """Thread that owns the only writing connection. Use `await open()` and `await close()` in one event loop.

    connect: opens the connection; in autocommit mode, so that transactions begin and end here.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._queue: SimpleQueue[Write | None] = SimpleQueue()
        self._unfinished: set[asyncio.Future[list[Outcome]]] = set()

    async def open(self) -> None:
        """Connect, and start the thread. Raises what `connect` raises."""
        connection = await asyncio.to_thread(self._connect)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(connection,), name="sqlite-writer")
        self._thread.start()

    def submit(
        self, statements: Sequence[Statement], after_commit: Callable[[], None]
    ) -> asyncio.Future[list[Outcome]]:
        """Hand in a transaction. The write goes on when the caller stops waiting: await the future behind a shield."""
        done: asyncio.Future[list[Outcome]] = self._loop.create_future()
        self._unfinished.add(done)
        done.add_done_callback(self._unfinished.discard)
        self._queue.put(Write(statements=statements, done=done, after_commit=after_commit))
        return done

    async def flush(self) -> None:
        """Wait until all that was handed in so far is written or has failed."""
        if self._unfinished:
            await asyncio.wait(set(self._unfinished))

    async def close(self) -> None:
        """Write all that was handed in, then end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # -- in the thread

    def _run(self, connection: sqlite3.Connection) -> None:
        with closing(connection):
            while group := self._next_group():
                results = _write_group(connection, group)
                with suppress(RuntimeError):  # the loop is closed, so no caller waits
                    self._loop.call_soon_threadsafe(_finish_group, group, results)

    def _next_group(self) -> list[Write]:
        """Wait for a write and take all others that are there; empty when the writer is closed."""
        group: list[Write] = []
        item = self._queue.get()
        with suppress(Empty):
            while item is not None:
                group.append(item)
                if len(group) == MAX_WRITES_PER_COMMIT:
                    return group
                item = self._queue.get_nowait()
            self._queue.put(None)  # closed: write this group first, then end at the second look
        return group


def _finish_group(group: Sequence[Write], results: Sequence[Result]) -> None:
    for write, result in zip(group, results, strict=True):
        if isinstance(result, Exception):
            write.done.set_exception(result)
        else:
            write.after_commit()
            write.done.set_result(result)


def _write_group(connection: sqlite3.Connection, group: Sequence[Write]) -> Sequence[Result]:
    """Commit the group; if that fails as a whole, write one by one, so that one write cannot fail the others."""
    try:
        return _commit_together(connection, group)
    except Exception as error:
        # a lock: each of them would only wait for it again
        if len(group) == 1 or not isinstance(error, sqlite3.Error) or is_busy(error):
            return [error] * len(group)
        return [_write_group(connection, [write])[0] for write in group]


def _commit_together(connection: sqlite3.Connection, group: Sequence[Write]) -> Sequence[Result]:
    """Run every write in a savepoint of its own, and commit all of them with one fsync."""
    results: list[Result] = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        for write in group:
            connection.execute("SAVEPOINT one")
            try:
                results.append([_run_statement(connection, statement) for statement in write.statements])
            except Exception as error:  # fails this write alone
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


def _run_statement(connection: sqlite3.Connection, statement: Statement) -> Outcome:
    cursor = connection.execute(statement.sql, dict(statement.params))
    rows = cursor.fetchall()
    count = len(rows) if cursor.description else cursor.rowcount
    if statement.must_change and count == 0:
        raise Stale
    return Outcome(count=count, rows=rows)


def is_busy(error: BaseException) -> bool:
    """Return whether another connection holds the lock."""
    return (getattr(error, "sqlite_errorname", "") or "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
