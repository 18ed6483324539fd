"""Blobs as files: a draft in the same file system, synced, then renamed to its hash.

<root>/.drafts/<random>               being written; locked by its writer, so that only orphans are swept
<root>/<shard>/<owner>/<sha256>       kept; the shard is the owner's last two characters: ids end in random ones
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aiofiles.threadpool.binary import AsyncBufferedReader, AsyncFileIO

from storage.blobs import Blob, BlobMissing, Draft, Reading
from storage.database import StorageError, StorageFull

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

T = TypeVar("T")
MIB = 2**20
CHUNK = MIB
OWNER = re.compile(r"[A-Za-z0-9_]{1,80}")
NAME = re.compile(r"([A-Za-z0-9_]{1,80})/([0-9a-f]{64})")
PLACE_TRIES = 100

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
CURES = {
    errno.EACCES: "let this user write to the folder of BROKER_BLOB_URL",
    errno.EPERM: "let this user write to the folder of BROKER_BLOB_URL",
    errno.EROFS: "mount the disk of BROKER_BLOB_URL writable",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of this machine",
    errno.EIO: "the disk is failing: check it, and the kernel's log",
    errno.ENOTDIR: "BROKER_BLOB_URL must name a folder",
    errno.EEXIST: "BROKER_BLOB_URL must name a folder",
}


class LocalBlobs:
    """A blob store in one folder, for any number of processes of one machine.

    free_floor: bytes that stay free on the disk; a draft that begins below it is refused with `StorageFull`.
    """

    def __init__(self, root: Path, *, free_floor: int = 0) -> None:
        self.root = root
        self._drafts = root / ".drafts"
        self._free_floor = free_floor

    def draft(self, owner: str) -> Draft:
        return _LocalDraft(self, _owner(owner))

    async def open(self, name: str, start: int = 0, stop: int | None = None) -> Reading:
        if start < 0:
            raise ValueError("start counts from the first byte, it cannot be negative")
        return await _in_thread(partial(self._open, name, start, stop))

    async def delete(self, owner: str) -> int:
        """Not synced: after a power cut some of it may be back, and is deleted the next time."""
        return await _in_thread(partial(_remove, self._folder(_owner(owner))))

    async def sweep(self, older_than: float) -> int:
        """Call it at start and now and then; a draft whose writer lives is left alone, however old."""
        return await _in_thread(partial(self._sweep, older_than))

    async def owners(self, older_than: float, since: float = 0.0) -> list[str]:
        return await _in_thread(partial(self._owners, older_than, since))

    async def check(self) -> None:
        """Write and sync a small file, as a draft would. Raises `StorageError` with the cure."""
        await _in_thread(self._check)

    # -- in a thread

    def new_draft(self) -> _HashingFile:
        self._keep_floor()
        self._drafts.mkdir(parents=True, exist_ok=True)
        return _HashingFile(self._drafts / secrets.token_hex(16))

    def place(self, draft: Path, owner: str, sha256: str) -> None:
        """Give a synced draft its name, and sync every folder on the way: a new one is as forgetful as a new file."""
        folder = self._folder(owner)
        descriptor = _rename_into(folder, draft, sha256)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)
        for parent in (folder.parent, self.root):
            self._sync_folder(parent)

    def sync(self, descriptor: int) -> None:
        """The only place where bytes are forced to the disk; a test may listen here, or fail."""
        os.fsync(descriptor)

    def _sync_folder(self, folder: Path) -> None:
        descriptor = _open_folder(folder)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def _folder(self, owner: str) -> Path:
        return self.root / owner[-2:] / owner

    def _open(self, name: str, start: int, stop: int | None) -> Reading:
        match = NAME.fullmatch(name)
        if match is None:
            raise BlobMissing("there is no image of that name")
        return _LocalReading(_open_blob(self._folder(match[1]) / match[2]), start, stop)

    def _sweep(self, older_than: float) -> int:
        if not self._drafts.is_dir():
            return 0
        limit = time.time() - older_than  # the age of a file is told by the machine's clock and no other
        return sum(_remove_orphan(path, limit) for path in self._drafts.iterdir())

    def _owners(self, older_than: float, since: float) -> list[str]:
        limit = time.time() - older_than  # a folder is as old as the last file that came or went
        folders = (folder for folder in self.root.glob("[A-Za-z0-9_]*/*") if OWNER.fullmatch(folder.name))
        return [folder.name for folder in folders if since <= _age_mark(folder) <= limit]

    def _check(self) -> None:
        file = self.new_draft()
        try:
            file.write(b"\0" * 4096)
            self.sync(file.fileno())
        finally:
            file.drop()

    def _keep_floor(self) -> None:
        if not self._free_floor:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(self.root)
        if disk.f_bavail * disk.f_frsize < self._free_floor:
            raise StorageFull(
                f"less than {self._free_floor // MIB} MiB are free on the disk of the images: "
                "free some space, or shorten BROKER_RETENTION_HOURS"
            )


class _LocalDraft:
    def __init__(self, store: LocalBlobs, owner: str) -> None:
        self._store = store
        self._owner = owner
        self._file: _HashingFile | None = None
        self._left = False
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self._opened.size

    @property
    def path(self) -> Path:
        return self._opened.path

    @property
    def _opened(self) -> _HashingFile:
        if self._file is None:
            raise RuntimeError("a draft is used inside its `async with` block")
        return self._file

    async def write(self, chunk: bytes) -> None:
        try:
            await AsyncFileIO(self._opened, loop=None, executor=None).write(chunk)
        except OSError as error:
            raise _told(error) from error

    async def keep(self) -> Blob:
        return await _in_thread(self._keep)

    def _keep(self) -> Blob:
        """1. sync the bytes 2. rename 3. sync the folders: a name is never durable before what it names."""
        file = self._opened
        with file.lock:
            self._store.sync(file.fileno())
            sha256 = file.sha256.hexdigest()
            self._store.place(file.path, self._owner, sha256)
        return Blob(name=f"{self._owner}/{sha256}", size=file.size, sha256=sha256)

    async def __aenter__(self) -> Draft:
        try:
            await _in_thread(self._open)
        except asyncio.CancelledError:
            await _in_thread(self._drop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await _in_thread(self._drop)

    def _open(self) -> None:
        with self._lock:
            if not self._left:  # a cancelled caller may be gone before its thread begins
                self._file = self._store.new_draft()

    def _drop(self) -> None:
        with self._lock:
            self._left = True
            if self._file is not None:
                self._file.drop()


class _HashingFile(io.FileIO):
    """A new file that hashes what it writes, both in one thread hop.

    The lock is for cancelled callers: their call goes on in its thread while somebody already closes the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), "x", opener=_create)
        self.path = path
        self.lock = threading.RLock()
        self.sha256 = hashlib.sha256()
        self.size = 0
        with suppress(OSError):  # a file system without locks: then only age protects a draft from the sweep
            fcntl.flock(self.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data: ReadableBuffer, /) -> int:
        with self.lock, memoryview(data).cast("B") as view:
            for start in range(0, len(view), CHUNK):
                self._write_all(view[start : start + CHUNK])
            return len(view)

    def _write_all(self, piece: memoryview) -> None:
        while piece:
            written = super().write(piece)
            self.sha256.update(piece[:written])
            self.size += written
            piece = piece[written:]

    def drop(self) -> None:
        """Close, and remove the draft if it was not renamed."""
        with self.lock:
            self.path.unlink(missing_ok=True)
            self.close()


class _LocalReading:
    """The rest of a blob. A class, because a generator that was never started cannot close its file."""

    def __init__(self, file: io.BufferedReader, start: int, stop: int | None) -> None:
        self._file = file
        end = file.seek(0, os.SEEK_END)
        self._left = (end if stop is None else min(stop, end)) - start
        file.seek(start)

    def __aiter__(self) -> _LocalReading:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._read(min(self._left, CHUNK)) if self._left > 0 else b""
        if not chunk:
            await self.aclose()
            raise StopAsyncIteration
        self._left -= len(chunk)
        return chunk

    async def _read(self, size: int) -> bytes:
        try:
            return await AsyncBufferedReader(self._file, loop=None, executor=None).read(size)
        except OSError as error:
            raise _told(error) from error

    async def aclose(self) -> None:
        self._left = 0
        await _in_thread(self._file.close)

    def __del__(self) -> None:
        self._file.close()


async def _in_thread(work: Callable[[], T]) -> T:
    """Run file work in a thread, to its end even if we are cancelled: half of it would leave something behind."""
    try:
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, work))
    except OSError as error:
        raise _told(error) from error


def _told(error: OSError) -> StorageError:
    """The system's error in the words of the contract; never with its path."""
    if error.errno in FULL:
        return StorageFull("no space is left for images: free some, or shorten BROKER_RETENTION_HOURS")
    cure = CURES.get(error.errno or 0, "look at the disk of BROKER_BLOB_URL, then try again")
    return StorageError(f"the image store cannot do it now ({error.strerror or 'unknown error'}): {cure}")


def _age_mark(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _owner(owner: str) -> str:
    if OWNER.fullmatch(owner) is None:
        raise ValueError("an owner is 1 to 80 letters, digits and underscores")
    return owner


def _create(path: str, flags: int) -> int:
    # the flags have O_EXCL: what is already there, be it a link, is never written to
    return os.open(path, flags | os.O_NOFOLLOW, 0o640)


def _open_blob(path: Path) -> io.BufferedReader:
    try:
        return open(path, "rb", opener=lambda file, flags: os.open(file, flags | os.O_NOFOLLOW))
    except OSError as error:
        if error.errno in ABSENT:
            raise BlobMissing("there is no image of that name") from error
        raise


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _rename_into(folder: Path, draft: Path, name: str) -> int:
    """Make the folder and move the draft into it; the folder's descriptor, still to be synced and closed.

    A delete of the same owner may take the folder away between any two steps: then again.
    """
    for _ in range(PLACE_TRIES):
        with suppress(FileNotFoundError, FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = _open_folder(folder)
            try:
                os.rename(draft, name, dst_dir_fd=descriptor)
            except OSError:
                os.close(descriptor)
                raise
            return descriptor
    raise FileNotFoundError(errno.ENOENT, "the draft is gone")


def _remove(folder: Path) -> int:
    """Remove the blobs of an owner, and the folder unless a new blob came meanwhile."""
    try:
        blobs = list(folder.iterdir())
    except FileNotFoundError:
        return 0
    removed = 0
    for blob in blobs:
        with suppress(FileNotFoundError):
            blob.unlink()
            removed += 1
    with suppress(OSError):
        folder.rmdir()
    return removed


def _remove_orphan(draft: Path, limit: float) -> bool:
    """Remove a draft that nobody has touched since `limit` and nobody holds; whether it was removed."""
    try:
        if draft.stat(follow_symlinks=False).st_mtime > limit or _held(draft):
            return False
        draft.unlink()
    except OSError:  # kept or dropped meanwhile, or no draft at all
        return False
    return True


def _held(draft: Path) -> bool:
    descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
