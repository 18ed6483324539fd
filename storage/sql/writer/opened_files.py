"""Identity of the files that a database was opened with.

A removed file stays readable and writable for the process that has it open, and is gone with that process.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from storage.errors import DatabaseReplaced


class OpenedFiles:
    """Device and inode of files, taken right after they were opened."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._identities = {path: _identity(path) for path in paths}

    def check(self) -> None:
        """Raise `DatabaseReplaced` with the cure unless each path leads to the file that was opened."""
        for path, identity in self._identities.items():
            if _identity(path) != identity:
                raise DatabaseReplaced(
                    f"the file {path.name} of the database was removed or replaced while the broker runs, so nothing "
                    "is stored: put that file back, or stop the broker, restore a backup of the database, and start it"
                )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
