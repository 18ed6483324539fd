"""Writer thread of a SQLite file: one connection, one transaction for all writes that wait at the same time.

A commit costs one fsync, however many writes are in it, so writes that arrive during a commit share the next one. The
event loop hands a group over when the one before is done, and waits while the thread runs its statements: side by side
each of them would cost two switches between the threads, as both need the GIL.
Nothing is reported as written that went into a removed file, and a full disk refuses all writes but those that may use
the reserve.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import compress, groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, TypeAlias

from storage.errors import StorageError, StorageFull
from storage.sql.database import Outcome, Stale, Statement, to_dicts
from storage.sql.row_changes import ChangedRows, RowRecorder
from storage.sql.sqlite_errors import FULL_MESSAGE, is_busy, is_full
from storage.sql.writer.equal_inserts import MIN_WRITES, insert_together, shape_of, text_of_rows
from storage.sql.writer.opened_files import OpenedFiles
from storage.sql.writer.reserve import DiskReserve
from storage.sql.writer.thread_turns import ThreadTurns

MAX_WRITES_PER_COMMIT = 256
"""Others wait for the next group."""
CHECKPOINT_STATEMENTS = 250
"""Statements after which the log, of some 700 pages then, is copied into the database between two commits."""
MAX_GROUP_STATEMENTS = 16
"""As which a larger group counts: its statements change the same pages, which are in the log once."""
CHECKPOINT_PAGES = 2000
"""Pages in the log after which a commit copies them itself, and its callers wait for that: many rows per statement."""
LAST_LOOK_SECONDS = 0.25
"""After the last commit, until the writer looks once more if another process has committed."""

Result: TypeAlias = list[Outcome] | Exception

_INSERTED: Final = Outcome(count=1)
"""Of each of the equal inserts that run together."""


class Write(NamedTuple):
    """One transaction to be written.

    done: its outcomes, set in the event loop. wake: channels that are notified before `done` is set.
    """

    statements: Sequence[Statement]
    done: asyncio.Future[list[Outcome]]
    wake: Sequence[str]


class GroupCommitWriter:
    """Thread that owns the only writing connection. Use `await open()` and `await close()` in one event loop.

    path: of the database. connect: opens the connection; in autocommit mode, so that transactions begin and end here.
    spends_reserve: every write may use the reserve. on_changes: called in the event loop with the rows that a group has
    changed, before the writes of the group are done. notify: notifies channels, in the event loop.
    """

    def __init__(
        self,
        path: Path,
        connect: Callable[[], sqlite3.Connection],
        *,
        on_changes: Callable[[ChangedRows], None] = lambda _: None,
        notify: Callable[..., None] = lambda *_: None,
        spends_reserve: bool = False,
    ) -> None:
        self._connect = connect
        self._on_changes = on_changes
        self._notify = notify
        self.recorder = RowRecorder()
        self._files = OpenedFiles(())
        self._refusal: StorageError | None = None
        self._paths = (path, path.with_name(path.name + "-wal"))
        self._reserve = DiskReserve(path.with_name(path.name + "-reserve"))
        self._spends_reserve = spends_reserve
        self._may_write_all = True
        self._statements_in_log = 0
        self._queue: SimpleQueue[list[Write] | None] = SimpleQueue()
        self._submitted: list[Write] = []
        self._is_writing = False
        self._unfinished = 0
        self.turns = ThreadTurns()

    async def open(self) -> None:
        """Connect, and start the thread. Raises what `connect` raises."""
        connection = await asyncio.to_thread(self._reserve.run, self._connect, is_full)
        self._files = OpenedFiles(self._paths)
        self.recorder.attach(connection)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(connection,), name="sqlite-writer")
        self._thread.start()

    def refuse(self, error: StorageError) -> None:
        """Fail all writes from now on."""
        self._refusal = error

    def check_files(self) -> None:
        """Raise `DatabaseReplaced` if database or log are no longer the opened ones, or why writes are refused."""
        if self._refusal is not None:
            raise self._refusal
        self._files.check()

    def submit(self, statements: Sequence[Statement], wake: Sequence[str] = ()) -> asyncio.Future[list[Outcome]]:
        """Hand in a transaction. The write goes on when the caller stops waiting, and cancels the future.

        wake: channels to be notified after the commit.
        """
        done: asyncio.Future[list[Outcome]] = self._loop.create_future()
        if not self._submitted and not self._is_writing:  # one group of all writes of one turn of the loop
            self._loop.call_soon(self._start_group)
        self._submitted.append(Write(statements, done, wake))
        if not self._unfinished:
            self.turns.begin(self._loop)
        self._unfinished += 1
        return done

    async def flush(self) -> None:
        """Wait until all that was handed in so far is written or has failed."""
        if self._unfinished:
            last = self.submit(())  # in the queue
            last.add_done_callback(_ignore_error)
            await asyncio.wait({last})

    async def close(self) -> None:
        """Write all that was handed in, then end the thread."""
        while self._submitted:
            self._hand_over()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _start_group(self) -> None:
        """Let the thread write what waits, and wait until it waits for the disk, for two milliseconds at most.

        A single write is not worth that: a loop with so few goes to sleep, and the statements may be long ones.
        """
        if self._is_writing or not self._submitted:
            return
        if len(self._submitted) == 1:
            self._hand_over()
        else:
            self.turns.close_gate()
            self._hand_over()
            self.turns.wait_at_gate()

    def _hand_over(self) -> None:
        group, self._submitted = self._submitted[:MAX_WRITES_PER_COMMIT], self._submitted[MAX_WRITES_PER_COMMIT:]
        self._is_writing = True
        self._queue.put(group)

    # -- in the thread

    def _run(self, connection: sqlite3.Connection) -> None:
        with closing(connection):
            while group := self._next_group():
                with self.turns.working():
                    results = self._write_to_opened_files(connection, group)
                needs_checkpoint = self._needs_checkpoint(results)
                self._report(group, results, is_free=not needs_checkpoint)
                if needs_checkpoint:
                    self._checkpoint(connection)

    def _needs_checkpoint(self, results: Sequence[Result]) -> bool:
        """Return whether the log is long enough to be copied into the database.

        Not while the reserve is in use, which a larger database would use up; nor after a group of which nothing was
        written: the files may be others by now.
        """
        written = [len(result) for result in results if not isinstance(result, Exception)]
        self._statements_in_log += min(sum(written), MAX_GROUP_STATEMENTS)
        return bool(written) and self._statements_in_log >= CHECKPOINT_STATEMENTS and self._may_write_all

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Copy the log into the database: after the report, as it takes as long as ten commits."""
        self._statements_in_log = 0
        with suppress(sqlite3.Error):  # as after a commit: the log keeps what was not copied
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._report((), (), is_free=True)

    def _report(self, group: Sequence[Write], results: Sequence[Result], *, is_free: bool) -> None:
        """Report in the event loop. is_free: the thread waits for the next group."""
        with suppress(RuntimeError):  # the loop is closed, so no caller waits
            self._loop.call_soon_threadsafe(self._finish_group, group, results, self.recorder.take(), is_free)

    def _write_to_opened_files(self, connection: sqlite3.Connection, group: Sequence[Write]) -> Sequence[Result]:
        """Write the group; fail it, written or not, if its files are gone from their paths."""
        try:
            self.check_files()
            results = self._write_admitted(connection, group)
            self._files.check()
        except (StorageError, sqlite3.Error) as error:
            return [error] * len(group)
        return results

    def _write_admitted(self, connection: sqlite3.Connection, group: Sequence[Write]) -> Sequence[Result]:
        """Write the group; while the reserve is in use, only those that may use it."""
        may_write_all = self._reserve.refill()
        if may_write_all != self._may_write_all:
            # a checkpoint may make the database larger and use the reserve up; deletions do not, and need a short log
            in_reserve = CHECKPOINT_PAGES // 20 if self._spends_reserve else 0
            connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES if may_write_all else in_reserve}")
            self._may_write_all = may_write_all
        is_admitted = [may_write_all or self._may_use_reserve(write) for write in group]
        admitted = list(compress(group, is_admitted))
        results = iter(self._write_group(connection, admitted) if admitted else ())
        return [next(results) if admits else StorageFull(FULL_MESSAGE) for admits in is_admitted]

    def _write_group(self, connection: sqlite3.Connection, group: Sequence[Write]) -> Sequence[Result]:
        """Commit the group; if that fails as a whole, write one by one, so that one write cannot fail the others."""
        commit = partial(self._commit_together, connection, group)
        try:
            return self._reserve.run(commit, is_full) if all(map(self._may_use_reserve, group)) else commit()
        except Exception as error:
            # a lock: each of them would only wait for it again
            if len(group) == 1 or not isinstance(error, sqlite3.Error) or is_busy(error):
                return [error] * len(group)
            return [self._write_admitted(connection, [write])[0] for write in group]

    def _commit_together(self, connection: sqlite3.Connection, group: Sequence[Write]) -> Sequence[Result]:
        """Commit all writes with one fsync; with a savepoint each, two statements more, only after one has failed."""
        try:
            return self._commit(connection, group, _run_writes)
        except Exception as error:
            if len(group) == 1 or (isinstance(error, sqlite3.Error) and (is_busy(error) or is_full(error))):
                raise
            return self._commit(connection, group, _run_writes_in_savepoints)

    def _commit(
        self,
        connection: sqlite3.Connection,
        group: Sequence[Write],
        run: Callable[[sqlite3.Connection, Sequence[Write]], list[Result]],
    ) -> Sequence[Result]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            self.recorder.begin()
            results = run(connection, group)
            with self.turns.waiting():
                connection.commit()  # takes the GIL back once, an `execute` after each of its steps
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        finally:
            self.recorder.finish()
        return results

    def _may_use_reserve(self, write: Write) -> bool:
        return self._spends_reserve or any(statement.may_use_reserve for statement in write.statements)

    def _next_group(self) -> list[Write] | None:
        """Wait for writes; if none come soon, look once for commits of other processes after the last own one."""
        with suppress(Empty):
            return self._queue.get(timeout=LAST_LOOK_SECONDS)
        with suppress(sqlite3.Error):
            if self.recorder.look():
                self._report((), (), is_free=False)
        return self._queue.get()

    # -- in the event loop

    def _finish_group(
        self, group: Sequence[Write], results: Sequence[Result], changed: ChangedRows, is_free: bool
    ) -> None:
        if is_free:  # before what may fail: without another group no write would ever be done
            self._is_writing = False
            if self._submitted:  # the next group after this turn, with all that the turn adds
                self._loop.call_soon(self._start_group)
        self._on_changes(changed)
        self._unfinished -= len(group)
        if group and not self._unfinished:
            self.turns.end()
        for write, result in zip(group, results, strict=True):
            if isinstance(result, Exception):
                if not write.done.cancelled():
                    write.done.set_exception(result)
                continue
            if write.wake:
                self._notify(*write.wake)
            if not write.done.cancelled():
                write.done.set_result(result)


def _ignore_error(done: asyncio.Future[list[Outcome]]) -> None:
    """Look at an error that no caller waits for, so that the loop does not report it."""
    if not done.cancelled():
        done.exception()


def _run_writes(connection: sqlite3.Connection, group: Sequence[Write]) -> list[Result]:
    """Run writes in their order; those of the same inserts, one behind the other, together."""
    results: list[Result] = []
    for shape, run in groupby(group, key=lambda write: shape_of(write.statements)):
        writes = list(run)
        if shape and len(writes) >= MIN_WRITES:
            results += _run_equal_inserts(connection, writes)
        else:
            results += [_run_write(connection, write) for write in writes]
    return results


def _run_equal_inserts(connection: sqlite3.Connection, writes: Sequence[Write]) -> list[Result]:
    """Run the first statement of all, then the second of all: one by one if that finds a first one `Stale`."""
    first, *others = zip(*(write.statements for write in writes), strict=True)
    connection.execute("SAVEPOINT first")
    is_done = insert_together(connection, first)
    if not is_done:
        connection.execute("ROLLBACK TO first")
    connection.execute("RELEASE first")
    if not is_done:
        return [_run_write(connection, write) for write in writes]
    if not all(insert_together(connection, statements) for statements in others):
        raise Stale
    outcomes = [_INSERTED] * len(writes[0].statements)
    return [[*outcomes] for _ in writes]


def _run_writes_in_savepoints(connection: sqlite3.Connection, group: Sequence[Write]) -> list[Result]:
    return [_run_write_in_savepoint(connection, write) for write in group]


def _run_write_in_savepoint(connection: sqlite3.Connection, write: Write) -> Result:
    """Run one write; return the error of one that fails alone."""
    connection.execute("SAVEPOINT one")
    result: Result
    try:
        result = _run_write(connection, write)
    except Exception as error:
        if not connection.in_transaction:  # a full disk rolls the whole transaction back
            raise
        connection.execute("ROLLBACK TO one")
        result = error
    connection.execute("RELEASE one")
    return result


def _run_write(connection: sqlite3.Connection, write: Write) -> Result:
    """Run one write; return the `Stale` of its first statement, which has changed nothing that is to be undone."""
    outcomes: list[Outcome] = []
    for statement in write.statements:
        outcome = _run_statement(connection, statement)
        if statement.must_change and outcome.count == 0:
            if outcomes:
                raise Stale
            return Stale()
        outcomes.append(outcome)
    return outcomes


def _run_statement(connection: sqlite3.Connection, statement: Statement) -> Outcome:
    text, params = (text_of_rows(statement.sql, 1), statement.row) if statement.row else statement[:2]
    cursor = connection.execute(text, params)
    rows = to_dicts(cursor.fetchall()) if cursor.description else ()
    return Outcome(count=len(rows) if cursor.description else cursor.rowcount, rows=rows)
