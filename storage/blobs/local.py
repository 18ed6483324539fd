"""Blobs as files: a draft in the same file system, synced, then renamed to its owner and hash.

<root>/.drafts/<random>     being written; locked by its writer, so that only orphans are swept

The other files are those of `storage.blobs.folders`.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import itertools
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from storage.blobs.folders import BlobFolders, place_of
from storage.blobs.staging import Blob, Disk, Draft, HashingFile, StagingArea, open_file
from storage.blobs.store import NAME, BlobMissing, BlobReader, validate_owner
from storage.file_modes import GROUP_READ_FILE, add_bits

CHUNK_BYTES = 2**20
DISK = Disk(variable="BROKER_BLOB_URL", room="free some, or shorten BROKER_RETENTION_HOURS")
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_DSYNC
"""A new file whose bytes are durable when they are written."""
ABSENT_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


class LocalBlobs:
    """Blob store in one folder, for any number of processes of one machine.

    free_floor: bytes that stay free on the disk; a draft that begins below it is refused with `StorageFull`.
    group_read: new blobs, and the folders on the way from the root to them, are readable by the group.
    """

    def __init__(self, root: Path, *, free_floor: int = 0, group_read: bool = False) -> None:
        self.root = root
        self._group_read = group_read
        self._drafts = StagingArea(root / ".drafts", DISK, free_floor=free_floor)
        self._folders = BlobFolders(root, self.sync, group_read=group_read)
        self._draft_numbers = itertools.count(secrets.randbits(64))

    def new_draft(self, owner: str) -> Draft:
        owner = validate_owner(owner)
        return Draft(self._drafts, partial(self._commit, owner), DISK.run, partial(self.store_whole, owner))

    async def open(self, name: str, start: int = 0, stop: int | None = None) -> BlobReader:
        if start < 0:
            raise ValueError("start counts from the first byte, it cannot be negative")
        opened: list[_LocalReader] = []
        try:
            await DISK.run(lambda: opened.append(self._open(name, start, stop)))
        except asyncio.CancelledError:
            for reader in opened:  # the collector may destroy the file before the reader that would close it
                await reader.aclose()
            raise
        return opened[0]

    async def delete(self, owner: str) -> int:
        """Delete without sync: blobs that reappear after a power cut are deleted the next time."""
        return await DISK.run(partial(self._folders.remove, [validate_owner(owner)]))

    async def delete_of_owners(self, owners: Sequence[str]) -> None:
        """Delete in one turn of a thread: most owners have one file, or none any more."""
        await DISK.run(partial(self._folders.remove, [validate_owner(owner) for owner in owners]))

    async def delete_stale_drafts(self, older_than: float) -> int:
        return await DISK.run(partial(self._drafts.sweep, older_than))

    async def list_owners(self, older_than: float, since: float = 0.0) -> list[str]:
        return await DISK.run(partial(self._folders.list_owners, older_than, since))

    async def check(self) -> None:
        """Write and sync a small file, as a draft would. Raises `StorageError` with the cure."""
        await DISK.run(partial(self._drafts.write_probe, self.sync))

    async def get_link(self, name: str, seconds: int) -> str | None:
        return None

    def path_below_root(self, name: str) -> str:
        match = NAME.fullmatch(name)
        if match is None:
            raise BlobMissing("image not found")
        place = place_of(match[1])
        return f"{place.outer}/{place.inner}/{match[1]}.{match[2]}"

    # -- in a thread

    def _commit(self, owner: str, file: HashingFile, _: str | None) -> Blob:
        """1. Set the mode, sync the bytes. 2. Rename. 3. Sync the folders: a name is never durable before its bytes."""
        if self._group_read:
            add_bits(file.fileno(), GROUP_READ_FILE)
        self.sync(file.fileno())
        sha256 = file.sha256.hexdigest()
        self.place(file.path, owner, sha256)
        file.is_draft = False
        return Blob(name=f"{owner}/{sha256}", size=file.size, sha256=sha256)

    def store_whole(self, owner: str, data: bytes) -> Blob:
        """Store bytes for a valid owner; blocks. Raises OSError, and `StorageFull`.

        The draft is in the folder of the owner: a third less work than a lock and a second folder.
        """
        self._drafts.require_room()
        sha256 = hashlib.sha256(data).hexdigest()
        self._folders.change(owner, partial(self._write_blob, data, owner, f"{owner}.{sha256}"))
        return Blob(name=f"{owner}/{sha256}", size=len(data), sha256=sha256)

    def _write_blob(self, data: bytes, owner: str, name: str, folder: int) -> None:
        """Write a blob into an open folder; `_commit` has the order of the steps."""
        draft = f".{owner}.{next(self._draft_numbers):x}"
        file = os.open(draft, NEW_FILE, 0o600, dir_fd=folder)
        try:
            try:
                if self._group_read:
                    add_bits(file, GROUP_READ_FILE)
                self.write_durably(file, data)
            finally:
                os.close(file)
            os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)
            raise

    def place(self, draft: Path, owner: str, sha256: str) -> None:
        """Rename a synced draft."""
        self._folders.change(owner, lambda folder: os.rename(draft, f"{owner}.{sha256}", dst_dir_fd=folder))

    def write_durably(self, descriptor: int, data: bytes) -> None:
        """Write to a `NEW_FILE`; tests observe or fail this call."""
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        if not data:
            self.sync(descriptor)

    def sync(self, descriptor: int) -> None:
        """Sync a file or folder; tests observe or fail this call."""
        os.fsync(descriptor)

    def _open(self, name: str, start: int, stop: int | None) -> _LocalReader:
        path = self.root / self.path_below_root(name)
        try:
            file = io.FileIO(path, opener=open_file)
        except OSError as error:
            if error.errno in ABSENT_ERRNOS:
                raise BlobMissing("image not found") from error
            raise
        try:
            return _LocalReader(file, start, stop)
        except BaseException:
            file.close()
            raise


class _LocalReader:
    """Remaining bytes of a blob. A class, because a generator that was never started cannot close its file.

    Each hop to a thread costs as much as reading 256 KiB: the first chunk is read with the opening, and the file is
    closed with the last one.
    """

    def __init__(self, file: io.FileIO, start: int, stop: int | None) -> None:
        self._file = file
        end = file.seek(0, os.SEEK_END)
        self._left = (end if stop is None else min(stop, end)) - start
        file.seek(start)
        self._first = self._read_chunk()

    def __aiter__(self) -> _LocalReader:
        return self

    async def __anext__(self) -> bytes:
        chunk, self._first = self._first, b""
        if not chunk and not self._file.closed:
            chunk = await DISK.run(self._read_chunk)
        if not chunk:
            raise StopAsyncIteration
        return chunk

    def _read_chunk(self) -> bytes:
        chunk = self._file.read(min(self._left, CHUNK_BYTES)) if self._left > 0 else b""
        self._left -= len(chunk)
        if not chunk or self._left <= 0:
            self._file.close()
        return chunk

    async def aclose(self) -> None:
        self._first = b""
        if not self._file.closed:
            await DISK.run(self._file.close)

    def __del__(self) -> None:
        self._file.close()
