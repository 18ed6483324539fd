"""Changes of a table's rows in a SQLite file, for a cache of them: its own process's exactly, others' by a counter.

A trigger of the only writing connection records each row that a statement of this process changes, whatever statement
that is, and the event loop gets the ids before the writer's caller gets its result. Commits of other processes show in
`PRAGMA data_version`, which names no rows. The writer reads it inside each transaction, when no other process can
commit, and once more a moment after the last one. The reader looks after each commit of this process, and once per turn
of the event loop when it is asked; what it cannot tell from a commit of this process, the writer finds. Neither looks
while there is no question for many commits; the next one is answered as if another process had committed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from storage.sql.inline_reader import READ_VERSION, InlineReader

RECORD_FUNCTION: Final = "record_changed_row"

MAX_UNASKED: Final = 16
"""Commits after a question with a look each: it takes the interpreter from the thread that has just committed."""

Listener = Callable[[Collection[str]], None]


@dataclass(frozen=True)
class ChangedRows:
    """Changes since the last report. is_foreign: another process has committed, too."""

    ids: Collection[str]
    is_foreign: bool


class RowRecorder:
    """The part in the thread of the writer. `begun` and `finished` count its transactions, and are read by the loop."""

    def __init__(self) -> None:
        self.begun = 0
        self.finished = 0
        self.is_looking = False
        """Set by the loop: a question came lately."""
        self._ids: set[str] = set()
        self._version = -1
        self._is_foreign = False

    def attach(self, connection: sqlite3.Connection) -> None:
        """Define the function that the trigger calls."""
        connection.create_function(RECORD_FUNCTION, 1, self._ids.add)
        self._cursor = connection.cursor()
        self._cursor.row_factory = None
        self._version = self._read_version()

    def begin(self) -> None:
        """Note that a transaction has begun and no other process can commit until it ends."""
        self.begun += 1
        if self.is_looking:
            self.look()

    def finish(self) -> None:
        self.finished += 1

    def look(self) -> bool:
        """Note commits of other processes; return whether there are any to report."""
        version = self._read_version()
        self._is_foreign = self._is_foreign or version != self._version
        self._version = version
        return self._is_foreign

    def _read_version(self) -> int:
        version: int = next(self._cursor.execute(READ_VERSION))[0]
        return version

    def take(self) -> ChangedRows:
        """Return what was recorded since the last call, undone changes included."""
        changed = ChangedRows(frozenset(self._ids), self._is_foreign)
        self._ids.clear()
        self._is_foreign = False
        return changed


class RowChanges:
    """The part in the event loop. reader: a connection that does not write."""

    def __init__(self, recorder: RowRecorder, reader: InlineReader) -> None:
        self._recorder = recorder
        self._reader = reader
        self._listeners: list[Listener] = []
        self._epoch = 0
        self._version: int | None = None
        self._finished = 0
        self._has_looked = False
        self._unasked = 0
        """Reports since the last question."""

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with the ids of rows that this process has changed, before their writers go on."""
        self._listeners.append(listener)

    def report(self, changed: ChangedRows) -> None:
        """Take what the writer has recorded, and look: a later commit of another process stands alone then."""
        self._unasked += 1
        if self._unasked <= MAX_UNASKED:
            self._look()
        else:
            self._recorder.is_looking = False
        self._epoch += changed.is_foreign
        if changed.ids:
            for listener in self._listeners:
                listener(changed.ids)

    def epoch(self) -> int:
        """Return a number that has grown if another process may have changed rows.

        Cheap: one look per turn of the event loop, after everything that is answered in that turn was asked.
        """
        if not self._has_looked:
            self._has_looked = True
            asyncio.get_running_loop().call_soon(self._end_turn)
            self._epoch += not self._recorder.is_looking  # another process may have committed since the last look
            self._recorder.is_looking, self._unasked = True, 0
            self._look()
        return self._epoch

    def _end_turn(self) -> None:
        self._has_looked = False

    def _look(self) -> None:
        finished = self._recorder.finished  # before the version, which has all of these
        version = self._reader.read_version()
        if version != self._version or version is None:
            self._version = version
            # since the last look no transaction of this process can have ended
            self._epoch += self._recorder.begun == self._finished
        self._finished = finished


def trigger_statements(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Return the statements by which the writing connection records changes of these columns, and deletions."""
    names = ", ".join(f'"{name}"' for name in columns)
    record = f"BEGIN SELECT {RECORD_FUNCTION}(OLD.id); END"
    return (
        f"CREATE TEMP TRIGGER IF NOT EXISTS {table}_updated AFTER UPDATE OF {names} ON {table} {record}",
        f"CREATE TEMP TRIGGER IF NOT EXISTS {table}_deleted AFTER DELETE ON {table} {record}",
    )
