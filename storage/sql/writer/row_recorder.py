"""Record of changed rows, by a trigger of the only writing connection, and of commits of other processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Final

READ_VERSION: Final = "PRAGMA data_version"
RECORD_FUNCTION: Final = "record_changed_row"


class RowRecorder:
    """The writer's part of the tracking of changes, which `RowChanges` explains."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Define the function that the trigger calls, and note the version of the file."""
        self._ids: set[str] = set()
        self._is_foreign = False
        connection.create_function(RECORD_FUNCTION, 1, self._ids.add)
        self._cursor = connection.cursor()
        self._cursor.row_factory = None
        self._version = self._read_version()

    def look(self) -> bool:
        """Note commits of other processes; return whether there are any to report."""
        version = self._read_version()
        self._is_foreign = self._is_foreign or version != self._version
        self._version = version
        return self._is_foreign

    def _read_version(self) -> int:
        version: int = next(self._cursor.execute(READ_VERSION))[0]
        return version

    def take(self) -> tuple[Collection[str], bool]:
        """Return the ids and whether another process has committed, since the last call; undone changes included."""
        changed = tuple(self._ids), self._is_foreign
        self._ids.clear()
        self._is_foreign = False
        return changed


def trigger_statements(table: str, columns: Collection[str]) -> tuple[str, ...]:
    """Return the statements by which the writing connection records changes of these columns, and deletions."""
    names = ", ".join(f'"{name}"' for name in columns)
    record = f"BEGIN SELECT {RECORD_FUNCTION}(OLD.id); END"
    return (
        f"CREATE TEMP TRIGGER IF NOT EXISTS {table}_updated AFTER UPDATE OF {names} ON {table} {record}",
        f"CREATE TEMP TRIGGER IF NOT EXISTS {table}_deleted AFTER DELETE ON {table} {record}",
    )
