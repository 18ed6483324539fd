"""Look-ups of a SQLite file in the event loop, which take microseconds each."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from storage.sql.sqlite_errors import storage_error
from storage.sql.writer.row_recorder import READ_VERSION


class InlineReader:
    """A connection that does not write, in the thread of the event loop.

    Polls read in the turn of the loop in which they arrived, many in one turn: these reads share a transaction. SQLite
    locks and unlocks the file and checks it for changes once per transaction, which costs a quarter of such a read. A
    statement without parameters runs once in it. All other reads see what is committed when they begin.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._is_turn_open = False
        self._found_in_turn: dict[str, Sequence[tuple[Any, ...]]] = {}
        """Rows of the statements without parameters."""

    async def __aenter__(self) -> InlineReader:
        self._connection = await asyncio.to_thread(self._connect)
        self._tuples = self._connection.cursor()
        self._tuples.row_factory = None
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_turn_open = False
        self._found_in_turn.clear()
        self._connection.close()

    def fetch_one(self, sql: str, params: dict[str, Any]) -> sqlite3.Row | None:
        try:
            self._end_turn()
            row: sqlite3.Row | None = self._connection.execute(sql, params).fetchone()
        except sqlite3.Error as error:
            raise storage_error(error) from error
        return row

    def fetch_in_turn(self, sql: str, params: dict[str, Any]) -> Sequence[tuple[Any, ...]]:
        """Return rows as of this turn of the event loop."""
        if not params and (found := self._found_in_turn.get(sql)) is not None:
            return found
        try:
            if not self._is_turn_open:
                asyncio.get_running_loop().call_soon(self._end_turn)
                self._tuples.execute("BEGIN")
                self._is_turn_open = True
            rows = self._tuples.execute(sql, params).fetchall()
        except sqlite3.Error as error:
            raise storage_error(error) from error
        if not params:
            self._found_in_turn[sql] = rows
        return rows

    def read_version(self) -> int | None:
        """Return a number that other connections' commits change; None if it cannot be read."""
        try:
            self._end_turn()
            version: int = next(self._tuples.execute(READ_VERSION))[0]
        except sqlite3.Error:  # what is read next raises it, too
            return None
        return version

    def _end_turn(self) -> None:
        if self._is_turn_open:
            self._is_turn_open = False
            self._found_in_turn.clear()
            self._tuples.execute("COMMIT")
