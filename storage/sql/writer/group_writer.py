"""Writer of a SQLite file: one connection, one transaction for all writes that wait at the same time.

A commit costs one fsync, however many writes are in it, so writes that arrive during a commit share the next one.
Nothing is reported as written that went into a removed file, and a full disk refuses all writes but those that may use
the reserve. It blocks, and has few imports: it runs in a thread or in a process of its own, which has to start fast.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import compress, groupby
from pathlib import Path
from typing import Final, TypeAlias

from storage.errors import Stale, StorageFull
from storage.sql.sqlite_errors import FULL_MESSAGE, is_busy, is_full
from storage.sql.writer.connections import CHECKPOINT_PAGES, WRITER_PRAGMAS, open_connection
from storage.sql.writer.equal_inserts import MIN_WRITES, insert_together, shape_of, text_of_rows
from storage.sql.writer.groups import Group, PlainOutcome, PlainStatement, Report, Result, Write
from storage.sql.writer.opened_files import FileIdentity, OpenedFiles
from storage.sql.writer.reserve import DiskReserve
from storage.sql.writer.row_recorder import RowRecorder

CHECKPOINT_STATEMENTS: Final = 250
"""Statements after which the log, of some 700 pages then, is copied into the database between two commits."""
MAX_GROUP_STATEMENTS: Final = 16
"""As which a larger group counts: its statements change the same pages, which are in the log once."""
LAST_LOOK_SECONDS: Final = 0.25
"""After the last commit, until the writer looks once more if another process has committed."""

Receive: TypeAlias = Callable[[float | None], Group | None]
"""Returns the next group, or None at the end; raises TimeoutError after so many seconds."""


class GroupWriter:
    """The only writing connection. Use it in one thread: `open`, then `run`, then `close`.

    path: of the database. spends_reserve: every write may use the reserve. connect: opens the connection, in autocommit
    mode, so that transactions begin and end here.
    """

    def __init__(
        self, path: Path, *, spends_reserve: bool = False, connect: Callable[[], sqlite3.Connection] | None = None
    ) -> None:
        self._connect = connect or partial(open_connection, path, WRITER_PRAGMAS)
        self._paths = (path, path.with_name(path.name + "-wal"))
        self._reserve = DiskReserve(path.with_name(path.name + "-reserve"))
        self._spends_reserve = spends_reserve
        self._may_write_all = True
        self._statements_in_log = 0

    def open(self, known: Mapping[str, FileIdentity] | None, setup: Sequence[str]) -> Mapping[str, FileIdentity]:
        """Connect; return the identities of the opened files.

        known: those that an earlier writer has opened. Raises `DatabaseReplaced` if they are others now.
        setup: statements for the connection. Raises the errors of SQLite.
        """
        if known is not None:
            OpenedFiles(known).check()
        self._connection = self._reserve.run(self._connect, is_full)
        self._files = OpenedFiles.now(self._paths) if known is None else OpenedFiles(known)
        try:
            self._connection.row_factory = None
            self._recorder = RowRecorder(self._connection)
            for statement in setup:
                self._connection.execute(statement)
        except sqlite3.Error:
            self._connection.close()
            raise
        return self._files.identities

    def close(self) -> None:
        self._connection.close()

    def run(self, receive: Receive, report: Callable[[Report], None]) -> None:
        """Write groups until there are no more, and report on each."""
        while group := self._next_group(receive, report):
            results = self._write_to_opened_files(group)
            needs_checkpoint = self._needs_checkpoint(results)
            report(Report(results, *self._recorder.take(), is_free=not needs_checkpoint))
            if needs_checkpoint:
                self._checkpoint()
                report(Report((), *self._recorder.take(), is_free=True))

    def _next_group(self, receive: Receive, report: Callable[[Report], None]) -> Group | None:
        """Wait for writes; if none come soon, look once for commits of other processes after the last own one."""
        with suppress(TimeoutError):
            return receive(LAST_LOOK_SECONDS)
        with suppress(sqlite3.Error):
            if self._recorder.look():
                report(Report((), *self._recorder.take(), is_free=False))
        return receive(None)

    def _needs_checkpoint(self, results: Sequence[Result]) -> bool:
        """Return whether the log is long enough to be copied into the database.

        Not while the reserve is in use, which a larger database would use up; nor after a group of which nothing was
        written: the files may be others by now.
        """
        written = [len(result) for result in results if not isinstance(result, Exception)]
        self._statements_in_log += min(sum(written), MAX_GROUP_STATEMENTS)
        return bool(written) and self._statements_in_log >= CHECKPOINT_STATEMENTS and self._may_write_all

    def _checkpoint(self) -> None:
        """Copy the log into the database: after the report, as it takes as long as ten commits."""
        self._statements_in_log = 0
        with suppress(sqlite3.Error):  # as after a commit: the log keeps what was not copied
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _write_to_opened_files(self, group: Group) -> Sequence[Result]:
        """Write the group; fail it, written or not, if its files are gone from their paths."""
        try:
            self._files.check()
            results = self._write_admitted(group)
            self._files.check()
        except Exception as error:
            return [error] * len(group)
        return results

    def _write_admitted(self, group: Group) -> Sequence[Result]:
        """Write the group; while the reserve is in use, only those that may use it."""
        may_write_all = self._reserve.refill()
        if may_write_all != self._may_write_all:
            # a checkpoint may make the database larger and use the reserve up; deletions do not, and need a short log
            in_reserve = CHECKPOINT_PAGES // 20 if self._spends_reserve else 0
            self._connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES if may_write_all else in_reserve}")
            self._may_write_all = may_write_all
        is_admitted = [may_write_all or self._may_use_reserve(write) for write in group]
        admitted = list(compress(group, is_admitted))
        results = iter(self._write_group(admitted) if admitted else ())
        return [next(results) if admits else StorageFull(FULL_MESSAGE) for admits in is_admitted]

    def _write_group(self, group: Group) -> Sequence[Result]:
        """Commit the group; if that fails as a whole, write one by one, so that one write cannot fail the others."""
        commit = partial(self._commit_together, group)
        try:
            return self._reserve.run(commit, is_full) if all(map(self._may_use_reserve, group)) else commit()
        except Exception as error:
            # a lock: each of them would only wait for it again
            if len(group) == 1 or not isinstance(error, sqlite3.Error) or is_busy(error):
                return [error] * len(group)
            return [self._write_admitted([write])[0] for write in group]

    def _commit_together(self, group: Group) -> Sequence[Result]:
        """Commit all writes with one fsync; with a savepoint each, two statements more, only after one has failed."""
        try:
            return self._commit(group, _run_writes)
        except Exception as error:
            if len(group) == 1 or (isinstance(error, sqlite3.Error) and (is_busy(error) or is_full(error))):
                raise
            return self._commit(group, _run_writes_in_savepoints)

    def _commit(self, group: Group, run: Callable[[sqlite3.Connection, Group], list[Result]]) -> Sequence[Result]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._recorder.look()  # no other process can commit until this transaction ends
            results = run(self._connection, group)
            self._connection.commit()
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        return results

    def _may_use_reserve(self, write: Write) -> bool:
        return self._spends_reserve or any(may_use_reserve for _, _, _, may_use_reserve, _ in write)


def _run_writes(connection: sqlite3.Connection, group: Group) -> list[Result]:
    """Run writes in their order; those of the same inserts, one behind the other, together."""
    results: list[Result] = []
    for shape, run in groupby(group, key=shape_of):
        writes = list(run)
        if shape and len(writes) >= MIN_WRITES:
            results += _run_equal_inserts(connection, writes)
        else:
            results += [_run_write(connection, write) for write in writes]
    return results


def _run_equal_inserts(connection: sqlite3.Connection, writes: Group) -> list[Result]:
    """Run the first statement of all, then the second of all: one by one if that finds a first one `Stale`."""
    first, *others = zip(*writes, strict=True)
    connection.execute("SAVEPOINT first")
    is_done = insert_together(connection, first)
    if not is_done:
        connection.execute("ROLLBACK TO first")
    connection.execute("RELEASE first")
    if not is_done:
        return [_run_write(connection, write) for write in writes]
    if not all(insert_together(connection, statements) for statements in others):
        raise Stale
    outcomes: list[PlainOutcome] = [1] * len(writes[0])
    return [outcomes for _ in writes]


def _run_writes_in_savepoints(connection: sqlite3.Connection, group: Group) -> list[Result]:
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
    outcomes: list[PlainOutcome] = []
    for statement in write:
        outcome, count = _run_statement(connection, statement)
        must_change = statement[2]
        if must_change and count == 0:
            if outcomes:
                raise Stale
            return Stale()
        outcomes.append(outcome)
    return outcomes


def _run_statement(connection: sqlite3.Connection, statement: PlainStatement) -> tuple[PlainOutcome, int]:
    """Return the outcome, and the number of rows in it."""
    sql, params, _, _, row = statement
    cursor = connection.execute(text_of_rows(sql, 1), row) if row else connection.execute(sql, params)
    if cursor.description is None:
        return cursor.rowcount, cursor.rowcount
    rows = cursor.fetchall()
    return (tuple([column[0] for column in cursor.description]), rows), len(rows)
