"""The check of a whole SQLite file.

It reads every page, a second or two for each million tasks. So it has a connection of its own with a small cache, and
a start waits for it only a moment: a larger file is checked to its end while the broker serves.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from storage.errors import StorageError
from storage.sql.sqlite_errors import storage_error


class IntegrityCheck:
    """One check in a thread."""

    def __init__(self, path: Path, on_damage: Callable[[StorageError], None]) -> None:
        """on_damage: called in the event loop if damage is found after `wait` has returned."""
        self._path = path
        self._on_damage = on_damage
        self._connection: sqlite3.Connection | None = None
        self._running: asyncio.Task[None] | None = None

    async def wait(self, patience_seconds: float | None) -> None:
        """Check, for at most so long; None: to the end. Raises `StorageError` with the cure if the file is damaged."""
        self._running = asyncio.create_task(asyncio.to_thread(self._check), name="integrity")
        done, _ = await asyncio.wait({self._running}, timeout=patience_seconds)
        if done:
            self._running.result()
        else:
            self._running.add_done_callback(self._report)

    async def stop(self) -> None:
        """Stop a check that still runs."""
        if self._running is None:
            return
        self._running.remove_done_callback(self._report)
        while not self._running.done():
            with suppress(sqlite3.ProgrammingError):  # it is just being closed
                if self._connection is not None:
                    self._connection.interrupt()
            await asyncio.wait({self._running}, timeout=0.05)
        self._running.exception()

    def _check(self) -> None:
        with closing(sqlite3.connect(self._path, check_same_thread=False)) as connection:
            self._connection = connection
            try:
                connection.execute("PRAGMA query_only=ON")
                result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            except sqlite3.Error as error:
                raise storage_error(error) from error
            finally:
                self._connection = None
        if result != "ok":
            raise StorageError(
                f"{self._path.name} is damaged ({result}): restore it from a backup; the check did not change it"
            )

    def _report(self, running: asyncio.Task[None]) -> None:
        if isinstance(error := running.exception(), StorageError):
            self._on_damage(error)
