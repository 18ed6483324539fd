"""Disk space kept for writes that must not be lost: a file beside the database, released when the disk is full.

The job id of a paid order arrives when the money is spent. A full disk must not lose it, so space for it is taken in
advance. While some of that space is released, all other writes are refused: they would use it up.

The size of the file is the whole state, so it holds for every process of the database and survives a kill.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

RESERVE_BYTES: Final = 4 * 2**20
"""The answers to a hundred submissions, at eight pages each; a process has 32 submissions in progress at most."""
SLICE_BYTES: Final = 256 * 2**10
"""Released at a time, so that other users of the disk do not get all of it."""


class DiskReserve:
    """Reserve of one database. All methods block: call them in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def refill(self) -> bool:
        """Make the reserve whole if the disk has the space. Return False while a part of it is released.

        A reserve that the disk never had the space for refuses no writes.
        """
        size = self._size()
        if size is not None and size >= RESERVE_BYTES:
            return True
        return self._grow(size) or size is None

    def run(self, work: Callable[[], T], is_full: Callable[[BaseException], bool]) -> T:
        """Return the result of `work`. While the disk is too full for it, release a slice and run it again."""
        while True:
            try:
                return work()
            except Exception as error:
                if not is_full(error) or not self._release_slice():
                    raise

    def _size(self) -> int | None:
        try:
            return self._path.stat().st_size
        except OSError:
            return None

    def _grow(self, size: int | None) -> bool:
        """Take the missing space; return whether that succeeded. Otherwise nothing has changed."""
        begin = size or 0
        try:
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < RESERVE_BYTES - begin:
                return False
            self._resize(lambda file: _allocate(file, begin, RESERVE_BYTES - begin))
        except OSError:
            with suppress(OSError):
                if size is None:
                    self._path.unlink()
                else:
                    self._resize(lambda file: os.ftruncate(file, begin))
            return False
        return True

    def _release_slice(self) -> bool:
        size = self._size()
        if not size:
            return False
        try:
            self._resize(lambda file: os.ftruncate(file, max(0, size - SLICE_BYTES)))
        except OSError:
            return False
        return True

    def _resize(self, change: Callable[[int], None]) -> None:
        """Change the file and sync it: some file systems give freed space away only after that."""
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            change(file)
            os.fsync(file)
        finally:
            os.close(file)


def _allocate(file: int, start: int, size: int) -> None:
    """Take space on the disk, by writing zeros where the system has no call for it."""
    if sys.platform == "darwin":
        os.pwrite(file, bytes(size), start)
    else:
        os.posix_fallocate(file, start, size)
