"""Identity of the files that a database was opened with.

A removed file stays readable and writable for the process that has it open, and is gone with that process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from storage.errors import DatabaseReplaced

FileIdentity: TypeAlias = tuple[int, int] | None
"""Device and inode; None for no file."""


class OpenedFiles:
    """Files, and the identities that they had right after they were opened."""

    def __init__(self, identities: Mapping[str, FileIdentity]) -> None:
        """identities: by path."""
        self.identities = identities

    @classmethod
    def now(cls, paths: Iterable[Path]) -> OpenedFiles:
        return cls({str(path): _identity(path) for path in paths})

    def check(self) -> None:
        """Raise `DatabaseReplaced` with the cure unless each path leads to the file that was opened."""
        for name, identity in self.identities.items():
            path = Path(name)
            if _identity(path) != identity:
                raise DatabaseReplaced(
                    f"the file {path.name} of the database was removed or replaced while the broker runs, so nothing "
                    "is stored: put that file back, or stop the broker, restore a backup of the database, and start it"
                )


def _identity(path: Path) -> FileIdentity:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
