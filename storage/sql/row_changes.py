"""Changes of a table's rows in a SQLite file, for a cache of them: its own process's exactly, others' by a counter.

A trigger of the only writing connection records each row that a statement of this process changes, whatever statement
that is, and the event loop gets the ids before the writer's caller gets its result. Commits of other processes show in
`PRAGMA data_version`, which names no rows. The writer reads it inside each transaction, when no other process can
commit, and once more a moment after the last one. The reader looks after each commit of this process, and once per turn
of the event loop when it is asked; what it cannot tell from a commit of this process, the writer finds. It does not
look while there is no question for many commits; the next one is answered as if another process had committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from storage.sql.inline_reader import InlineReader

MAX_UNASKED: Final = 16
"""Commits after a question with a look each."""

Listener = Callable[[Collection[str]], None]


@dataclass(frozen=True)
class ChangedRows:
    """Changes since the last report. is_foreign: another process has committed, too."""

    ids: Collection[str]
    is_foreign: bool


@dataclass
class GroupCounts:
    """Groups of writes that the event loop has handed to the writer, and those of them that were reported."""

    begun: int = 0
    finished: int = 0


class RowChanges:
    """The part in the event loop. reader: a connection that does not write. groups: counted by the writer's part."""

    def __init__(self, groups: GroupCounts, reader: InlineReader) -> None:
        self._groups = groups
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
            self._epoch += self._unasked > MAX_UNASKED  # another process may have committed since the last look
            self._unasked = 0
            self._look()
        return self._epoch

    def _end_turn(self) -> None:
        self._has_looked = False

    def _look(self) -> None:
        version = self._reader.read_version()
        if version != self._version or version is None:
            self._version = version
            # since the last look no transaction of this process can have ended
            self._epoch += self._groups.begun == self._finished
        self._finished = self._groups.finished
