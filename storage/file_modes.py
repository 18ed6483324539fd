"""Modes of files and folders: for the user of the process alone, and for its group where a setting says so."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

PRIVATE_UMASK: Final = 0o077
OTHER_USERS: Final = 0o077
"""Bits of the group and of all other users."""

GROUP_READ_FILE: Final = 0o040
GROUP_READ_FOLDER: Final = 0o050
GROUP_PASS_FOLDER: Final = 0o010
"""Reach what is in the folder by its name, without listing it."""


def restrict_new_files() -> None:
    """Make what this process and its children create accessible to their user only.

    SQLite gives its WAL and SHM the mode of the database file, so an older database keeps its mode for them, too.
    """
    os.umask(PRIVATE_UMASK)


def add_bits(descriptor: int, bits: int) -> None:
    """Add bits to the mode of an open file or folder that lacks them. Raises OSError if it belongs to another user."""
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & bits != bits:
        os.fchmod(descriptor, mode | bits)


def find_exposed(
    path: Path, *, permitted: Callable[[Path], int] = lambda _: 0, reach: int = OTHER_USERS
) -> Iterator[tuple[Path, int]]:
    """Yield path and mode of the path and of what is below it, as far as users other than its owner have access.

    Files come before folders. permitted: bits that are meant to be set. reach: bits of the users who can pass the
    folders above.
    """
    with suppress(FileNotFoundError, PermissionError):  # deleted at the same time, or not ours to look into
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return
        if mode & reach & ~permitted(path):
            yield path, stat.S_IMODE(mode)
        if stat.S_ISDIR(mode) and (passing := reach & _classes_that_pass(mode)):
            for entry in sorted(path.iterdir(), key=lambda entry: (entry.is_dir(), entry.name)):
                yield from find_exposed(entry, permitted=permitted, reach=passing)


def _classes_that_pass(mode: int) -> int:
    """Return all bits of each class of users, group and others, that may pass a folder of this mode."""
    return (0o070 if mode & stat.S_IXGRP else 0) | (0o007 if mode & stat.S_IXOTH else 0)
