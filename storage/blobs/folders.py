"""Folders of a blob store of files.

<root>/<outer>/<inner>/.<owner>.<number>      being written by bytes that were whole in memory; deleted with its owner
<root>/<outer>/<inner>/<owner>.<sha256>       stored

Owners whose ids begin with the time share a folder with those of the same four seconds, and an outer one with those of
the same 17 minutes: beside many orders few folders are made and synced, and a delete of tasks that ended at one time
lists few files. Any other owner has a folder of its own; the outer one is called by the last two characters of the id,
which are random ones.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage.blobs.spreading import spread_subfolders
from storage.blobs.store import OWNER
from storage.file_modes import GROUP_READ_FOLDER, add_bits
from storage.ids import NUMBER_DIGITS, TIME_DIGITS

MAX_OPEN_FOLDERS: Final = 32
"""Folders that stay open: those of all tasks that were created within two minutes."""

MAX_CHANGES: Final = 100
"""Tries of a change beside deletes of the same owner."""

_OUTER_DIGITS: Final = TIME_DIGITS - 5
_INNER_DIGITS: Final = 2
_TIMED: Final = re.compile(
    rf"([a-z]+_[0-9a-f]{{{_OUTER_DIGITS}}})([0-9a-f]{{{_INNER_DIGITS}}})"
    rf"[0-9a-f]{{{NUMBER_DIGITS - _OUTER_DIGITS - _INNER_DIGITS}}}"
)
"""An id that begins with milliseconds, of which the last three digits stay out of the names of its folders."""


@dataclass(frozen=True)
class Place:
    """The names of the folder of an owner."""

    outer: str
    inner: str
    is_shared: bool


class OpenFolder:
    """An open folder, closed by `close` or with the last reference to it, as threads share it."""

    def __init__(self, path: Path) -> None:
        """Raise OSError for what is no folder, or a link to one."""
        self._is_open = False
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.descriptor)

    __del__ = close


class BlobFolders:
    """The folders below a root. All methods block: call them in a thread.

    group_read: folders on the way to a blob are readable by the group. sync: syncs an open folder.
    """

    def __init__(self, root: Path, sync: Callable[[int], None], *, group_read: bool) -> None:
        self.root = root
        self._sync = sync
        self._group_read = group_read
        self._shared: dict[Place, OpenFolder] = {}
        """Folders whose names, and those above them, this process has synced; the oldest first."""
        self._lock = threading.Lock()
        self._durable_outer: set[str] = set()
        """Outer folders of single owners whose names this process has synced. Nothing deletes one."""

    def change(self, owner: str, change: Callable[[int], None]) -> None:
        """Change the folder of an owner, and sync every folder of its path, because new folders are not durable either.

        change: called with the open folder; again if a delete of the same owner has removed the folder, or what is in
        it, between any two steps.
        """
        place = place_of(owner)
        for _ in range(MAX_CHANGES):
            with suppress(FileNotFoundError):
                if shared := self._shared.get(place):
                    change(shared.descriptor)
                    self._sync(shared.descriptor)
                else:
                    self._change_new(place, change)
                return
            with self._lock:
                self._shared.pop(place, None)
        raise FileNotFoundError(errno.ENOENT, "the draft is gone")

    def remove(self, owners: Iterable[str]) -> int:
        """Delete all files of owners, and folders that are empty then; return the number of files."""
        owners_of: defaultdict[Place, set[str]] = defaultdict(set)
        for owner in owners:
            owners_of[place_of(owner)].add(owner)
        return sum(self._remove_from(place, those) for place, those in owners_of.items())

    def list_owners(self, older_than: float, since: float) -> list[str]:
        """Return the owners whose newest file was written between two moments of the machine's clock."""
        newest: dict[str, float] = {}
        for outer in _entries(self.root):
            for inner in _entries(outer.path) if outer.name[0] != "." else ():
                for file in _entries(inner.path):
                    owner = _owner_of(file.name)
                    with suppress(FileNotFoundError):
                        if OWNER.fullmatch(owner):
                            at = file.stat(follow_symlinks=False).st_mtime
                            newest[owner] = max(newest.get(owner, at), at)
        limit = time.time() - older_than
        return [owner for owner, at in newest.items() if since <= at <= limit]

    def _path(self, place: Place) -> Path:
        return self.root.joinpath(place.outer, place.inner)

    def _change_new(self, place: Place, change: Callable[[int], None]) -> None:
        """Change a folder that may be new, and keep it open if others of the same time may use it."""
        self._make(place)
        folder = self._open(self._path(place))
        is_kept = False
        try:
            change(folder.descriptor)
            self._sync(folder.descriptor)
            with suppress(FileNotFoundError):  # a delete of the same owner was faster: nothing is left to be durable
                self._sync_outer(place)
                if place.is_shared:
                    is_kept = True
                    self._keep_open(place, folder)
        finally:
            if not is_kept:
                folder.close()

    def _make(self, place: Place) -> None:
        path = self._path(place)
        with suppress(FileExistsError):  # what is no folder cannot be opened as one
            try:
                path.mkdir()
            except FileNotFoundError:
                self._durable_outer.discard(place.outer)
                self.root.mkdir(parents=True, exist_ok=True)
                spread_subfolders(self.root)
                path.mkdir(parents=True)

    def _sync_outer(self, place: Place) -> None:
        """Sync the folders above an inner one."""
        self._sync_folder(self.root / place.outer)
        if place.is_shared:  # it may have been deleted and made again since this process synced its name
            self._sync_folder(self.root)
        elif place.outer not in self._durable_outer:
            self._sync_folder(self.root)
            self._durable_outer.add(place.outer)

    def _sync_folder(self, path: Path) -> None:
        folder = self._open(path)
        try:
            self._sync(folder.descriptor)
        finally:
            folder.close()

    def _open(self, path: Path) -> OpenFolder:
        """Open a folder, and let the group in if it shall read."""
        folder = OpenFolder(path)
        if self._group_read:
            add_bits(folder.descriptor, GROUP_READ_FOLDER)
        return folder

    def _keep_open(self, place: Place, folder: OpenFolder) -> None:
        with self._lock:
            self._shared[place] = folder
            while len(self._shared) > MAX_OPEN_FOLDERS:
                del self._shared[next(iter(self._shared))]

    def _remove_from(self, place: Place, owners: set[str]) -> int:
        path = self._path(place)
        try:
            files = [file for file in path.iterdir() if _owner_of(file.name) in owners]
        except FileNotFoundError:
            return 0
        removed = 0
        for file in files:
            with suppress(FileNotFoundError):
                file.unlink()
                removed += 1
        with suppress(OSError):  # a folder with other files, or with a new one, stays
            path.rmdir()
            if place.is_shared:
                path.parent.rmdir()
        return removed


def place_of(owner: str) -> Place:
    """Return the names of the folder of a valid owner."""
    if match := _TIMED.fullmatch(owner):
        return Place(match[1], match[2], True)
    return Place(owner[-2:], owner, False)


def _owner_of(file: str) -> str:
    """Return the owner of a blob or of its draft, by the name of the file."""
    return file.removeprefix(".").partition(".")[0]


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries
