"""Classes of SQLite errors, and their translation into the errors of `storage`."""

from __future__ import annotations

import sqlite3
from typing import Final

from storage.errors import NoSuchTable, StorageError, StorageFull

FULL_MESSAGE: Final = "the disk of the database is full: free some space"

_MOVE_AWAY: Final = "restore it from a backup, or move it away to begin with an empty one"
_OTHER_PROCESS: Final = "another process holds it; end that one, or try again"
_CURES: Final = {
    "SQLITE_READONLY": "let this user write to its file and its folder",
    "SQLITE_CANTOPEN": "let this user read and write its file and its folder",
    "SQLITE_CORRUPT": f"it is damaged; {_MOVE_AWAY}",
    "SQLITE_NOTADB": f"it is not a database; {_MOVE_AWAY}",
    "SQLITE_BUSY": _OTHER_PROCESS,
    "SQLITE_LOCKED": _OTHER_PROCESS,
    "SQLITE_IOERR": "its disk is failing; check it, and the kernel's log",
}


def storage_error(error: sqlite3.Error) -> StorageError:
    """Translate an error of a statement."""
    if is_full(error):
        return StorageFull(FULL_MESSAGE)
    if "no such table" in str(error):
        return NoSuchTable("the database has no tables yet: run broker db upgrade")
    return StorageError(f"the database cannot do it now ({_name(error) or 'error'}, {error}): {find_cure(error)}")


def find_cure(error: BaseException) -> str:
    """Return the cure by the error's family: SQLITE_CANTOPEN_ISDIR belongs to SQLITE_CANTOPEN."""
    family = "_".join(_name(error).split("_")[:2])
    return _CURES.get(family, "look at its disk, and whether DATABASE_URL is right")


def is_full(error: BaseException) -> bool:
    """Return whether the disk has no space for the database, its log or the log's index."""
    # a quota and a limit on the size of files fail writes, a full disk fails the growth of the index
    return _name(error).startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"))


def is_busy(error: BaseException) -> bool:
    """Return whether another connection holds the lock."""
    return _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _name(error: BaseException) -> str:
    return getattr(error, "sqlite_errorname", "") or ""
