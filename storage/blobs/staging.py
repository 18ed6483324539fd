"""Drafts: new bytes of a blob store, in a local file that is hashed while it is written.

<folder>/<random>     being written; locked by its writer, so that only orphans are swept
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import io
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from storage.blobs.file_threads import FileThreads
from storage.errors import StorageError, StorageFull
from storage.ids import random_digits

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

T = TypeVar("T")
MIB = 2**20

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CURES = {
    errno.EACCES: "let this user write to the folder of {variable}",
    errno.EPERM: "let this user write to the folder of {variable}",
    errno.EROFS: "mount the disk of {variable} writable",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of this machine",
    errno.EIO: "the disk is failing: check it, and the kernel's log",
    errno.ENOTDIR: "{variable} must name a folder",
    errno.EEXIST: "{variable} must name a folder",
}


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A local disk, as error messages name it.

    variable: the setting that names it. room: the cure when it is full.
    """

    variable: str
    room: str
    threads: FileThreads = field(default_factory=FileThreads)

    async def run(self, work: Callable[[], T]) -> T:
        """Run file work in a thread. A cancelled caller waits for its end, so that no thread works on a closed file."""
        try:
            return await self.threads.run(work)
        except OSError as error:
            raise self.storage_error(error) from error

    def storage_error(self, error: OSError) -> StorageError:
        """Translate an OSError, without its path."""
        if error.errno in FULL:
            return StorageFull(f"no space is left for images: {self.room}")
        cure = CURES.get(error.errno or 0, "look at the disk of {variable}, then try again")
        cure = cure.format(variable=self.variable)
        return StorageError(f"the image store cannot do it now ({error.strerror or 'unknown error'}): {cure}")


class StagingArea:
    """Folder of drafts, shared by any number of processes of one machine.

    free_floor: bytes that stay free on the disk; a draft that begins below it is refused with `StorageFull`.
    All methods block: call them in a thread.
    """

    def __init__(self, folder: Path, disk: Disk, *, free_floor: int = 0) -> None:
        self.disk = disk
        self._folder = folder
        self._free_floor = free_floor

    def new(self) -> HashingFile:
        self.require_room()
        return HashingFile(self._folder / random_digits(32))

    def require_room(self) -> None:
        """Raise `StorageFull` below the free floor."""
        try:
            disk = os.statvfs(self._folder)
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True)
            disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < self._free_floor:
            raise StorageFull(
                f"less than {self._free_floor // MIB} MiB are free on the disk of the images: {self.disk.room}"
            )

    def write_probe(self, sync: Callable[[int], None] = os.fsync) -> None:
        """Write and sync a small draft, and delete it."""
        file = self.new()
        try:
            file.write(b"\0" * 4096)
            sync(file.fileno())
        finally:
            file.drop()

    def sweep(self, older_than: float) -> int:
        """Delete drafts of dead writers; a draft whose writer lives stays, however old."""
        if not self._folder.is_dir():
            return 0
        limit = time.time() - older_than  # files have times of the machine's clock
        return sum(_remove_orphan(path, limit) for path in self._folder.iterdir())


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Stored bytes.

    name: `<owner>/<sha256>`, the only handle. size: bytes. sha256: lower-case hex.
    """

    name: str
    size: int
    sha256: str


Commit = Callable[["HashingFile", str | None], Blob]
"""Stores the finished file with its media type; blocks."""


class RunBlocking(Protocol):
    """Runs blocking work of a store in a thread, and translates its errors."""

    async def __call__(self, work: Callable[[], T]) -> T: ...


class Draft:
    """New bytes: written in chunks, inspected, then committed or dropped. Use it with `async with`.

    Leaving the block without `commit` leaves nothing behind. Every call of `write` costs a thread hop: write some
    hundred KiB at once, and `store` what is no larger.
    """

    def __init__(
        self,
        drafts: StagingArea,
        commit: Commit,
        run: RunBlocking,
        store_whole: Callable[[bytes], Blob] | None = None,
    ) -> None:
        """store_whole: stores bytes that are whole in memory; blocks. None: by way of a file, as all others."""
        self._drafts = drafts
        self._commit = commit
        self._run = run
        self._store_whole = store_whole
        self._file: HashingFile | None = None

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._opened.size

    @property
    def sha256(self) -> str:
        """Hash of the bytes written so far, in lower-case hex."""
        return self._opened.sha256.hexdigest()

    @property
    def path(self) -> Path:
        """A local file with all bytes written so far, for a decoder (in a thread)."""
        return self._opened.path

    @property
    def _opened(self) -> HashingFile:
        if self._file is None:
            raise RuntimeError("a draft is used inside its `async with` block")
        return self._file

    async def write(self, chunk: bytes) -> None:
        """Append; hashes and writes outside the event loop. Raises `StorageFull`. After an error, leave the block."""
        await self._drafts.disk.run(partial(self._opened.write, chunk))

    async def commit(self, media_type: str | None = None) -> Blob:
        """Make the bytes durable under their final name, atomically. Equal bytes become one blob.

        media_type: Content-Type of a link to the blob; ignored by stores without links.
        The last call on a draft. After a cancellation the bytes are either stored or not.
        """
        return await self._run(partial(self._commit_and_close, self._opened, media_type))

    async def store(
        self, data: bytes, check: Callable[[], object] | None = None, media_type: str | None = None
    ) -> Blob:
        """Write and commit bytes that are whole in memory, in one thread hop, instead of the block.

        check: called first, in the same thread; what it raises is raised, and nothing was written then.
        """
        return await self._run(partial(self._store, data, check, media_type))

    async def __aenter__(self) -> Draft:
        try:
            await self._drafts.disk.run(self._open)
        except asyncio.CancelledError:
            await self._drafts.disk.run(self._drop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None and not self._file.closed:
            await self._drafts.disk.run(self._drop)

    # -- in a thread

    def _open(self) -> None:
        self._file = self._drafts.new()

    def _drop(self) -> None:
        if self._file is not None:
            self._file.drop()

    def _commit_and_close(self, file: HashingFile, media_type: str | None) -> Blob:
        blob = self._commit(file, media_type)
        file.drop()
        return blob

    def _store(self, data: bytes, check: Callable[[], object] | None, media_type: str | None) -> Blob:
        if check is not None:
            check()
        if self._store_whole is not None:
            return self._store_whole(data)
        file = self._drafts.new()
        try:
            file.write(data)
            return self._commit(file, media_type)
        finally:
            file.drop()


class HashingFile(io.FileIO):
    """A new file that hashes what it writes, both in one thread hop."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), "x", opener=open_file)
        self.path = path
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.is_draft = True
        """Whether the file is at `path`; a store that renames it sets False."""
        with suppress(OSError):  # a file system without locks: then only age protects a draft from the sweep
            fcntl.flock(self.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data: ReadableBuffer, /) -> int:
        with memoryview(data).cast("B") as view:
            done = 0
            while done < len(view):
                written = super().write(view[done:])
                self.sha256.update(view[done : done + written])
                self.size += written
                done += written
            return done

    def drop(self) -> None:
        """Close, and remove the draft if it was not renamed."""
        if self.is_draft:
            self.path.unlink(missing_ok=True)
        self.close()


def open_file(path: str, flags: int) -> int:
    """Open or create a file for this user only, never through a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _remove_orphan(draft: Path, limit: float) -> bool:
    """Delete a draft that is unlocked and untouched since `limit`; return whether it was deleted."""
    try:
        with io.FileIO(draft, opener=open_file) as file:
            if os.fstat(file.fileno()).st_mtime > limit:
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink()
    except OSError:  # locked by its writer, committed or dropped at the same time, or not a draft
        return False
    return True
