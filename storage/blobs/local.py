"""Blobs as files: a draft in the same file system, synced, then renamed to its hash.

<root>/.drafts/<random>               being written; locked by its writer, so that only orphans are swept
<root>/<shard>/<owner>/.<random>      the same of bytes that were whole in memory; deleted with its owner
<root>/<shard>/<owner>/<sha256>       stored; the shard is the owner's last two characters: ids end in random ones
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from storage.blobs.staging import Blob, Disk, Draft, HashingFile, StagingArea, open_file
from storage.blobs.store import NAME, OWNER, BlobMissing, BlobReader, validate_owner
from storage.file_modes import GROUP_READ_FILE, GROUP_READ_FOLDER, add_bits

CHUNK_BYTES = 2**20
DISK = Disk(variable="BROKER_BLOB_URL", room="free some, or shorten BROKER_RETENTION_HOURS")
MAX_PLACE_ATTEMPTS = 100
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
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
        self._durable_shards: set[str] = set()
        """Shards whose names this process has synced. Nothing deletes a shard."""

    def new_draft(self, owner: str) -> Draft:
        owner = validate_owner(owner)
        return Draft(self._drafts, partial(self._commit, owner), DISK.run, partial(self._store_whole, owner))

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
        return await DISK.run(partial(remove_folder, self._folder(validate_owner(owner))))

    async def delete_of_owners(self, owners: Sequence[str]) -> None:
        """Delete in one turn of a thread: most owners have one file, or none any more."""
        folders = [self._folder(validate_owner(owner)) for owner in owners]

        def remove_all() -> None:
            for folder in folders:
                remove_folder(folder)

        await DISK.run(remove_all)

    async def delete_stale_drafts(self, older_than: float) -> int:
        return await DISK.run(partial(self._drafts.sweep, older_than))

    async def list_owners(self, older_than: float, since: float = 0.0) -> list[str]:
        return await DISK.run(partial(self._list_owners, older_than, since))

    async def check(self) -> None:
        """Write and sync a small file, as a draft would. Raises `StorageError` with the cure."""
        await DISK.run(partial(self._drafts.write_probe, self.sync))

    async def get_link(self, name: str, seconds: int) -> str | None:
        return None

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

    def _store_whole(self, owner: str, data: bytes) -> Blob:
        """Store bytes with a draft in the folder of their owner: a third less work than a lock and a second folder."""
        self._drafts.require_room()
        sha256 = hashlib.sha256(data).hexdigest()
        self._change_folder(owner, partial(self._write_blob, data, sha256))
        return Blob(name=f"{owner}/{sha256}", size=len(data), sha256=sha256)

    def _write_blob(self, data: bytes, sha256: str, folder: int) -> None:
        """Write a blob into an open folder; `_commit` has the order of the steps."""
        draft = f".{secrets.token_hex(8)}"
        file = os.open(draft, NEW_FILE, 0o600, dir_fd=folder)
        try:
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(file, left) :]
                if self._group_read:
                    add_bits(file, GROUP_READ_FILE)
                self.sync(file)
            finally:
                os.close(file)
            os.rename(draft, sha256, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)
            raise

    def place(self, draft: Path, owner: str, sha256: str) -> None:
        """Rename a synced draft."""
        self._change_folder(owner, lambda descriptor: os.rename(draft, sha256, dst_dir_fd=descriptor))

    def _change_folder(self, owner: str, change: Callable[[int], None]) -> None:
        """Change the folder of an owner, and sync every folder of its path, because new folders are not durable either.

        Retries, because a delete of the same owner may remove the folder, or what is in it, between any two steps.
        """
        folder = self._folder(owner)
        for _ in range(MAX_PLACE_ATTEMPTS):
            with suppress(FileNotFoundError):
                self._make_folder(folder)
                self._sync_folder(folder, change)
                break
        else:
            raise FileNotFoundError(errno.ENOENT, "the draft is gone")
        shard = folder.parent
        self._sync_folder(shard)
        if shard.name not in self._durable_shards:
            self._sync_folder(self.root)
            self._durable_shards.add(shard.name)

    def _make_folder(self, folder: Path) -> None:
        with suppress(FileExistsError):  # what is no folder cannot be opened as one
            try:
                folder.mkdir()
            except FileNotFoundError:
                self._durable_shards.discard(folder.parent.name)
                folder.mkdir(parents=True)

    def _sync_folder(self, folder: Path, change: Callable[[int], None] | None = None) -> None:
        """Let the group in if it shall read, change the folder, and sync it: one on the way to a blob, never a link."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if self._group_read:
                add_bits(descriptor, GROUP_READ_FOLDER)
            if change is not None:
                change(descriptor)
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def sync(self, descriptor: int) -> None:
        """Sync a file or folder; tests observe or fail this call."""
        os.fsync(descriptor)

    def _folder(self, owner: str) -> Path:
        return self.root.joinpath(owner[-2:], owner)

    def _open(self, name: str, start: int, stop: int | None) -> _LocalReader:
        match = NAME.fullmatch(name)
        if match is None:
            raise BlobMissing("image not found")
        path = self._folder(match[1]) / match[2]
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

    def _list_owners(self, older_than: float, since: float) -> list[str]:
        limit = time.time() - older_than  # the time of a folder is that of the last file added or deleted
        owners = []
        for folder in self.root.glob("[A-Za-z0-9_]*/*"):
            with suppress(FileNotFoundError):
                if OWNER.fullmatch(folder.name) and since <= folder.stat().st_mtime <= limit:
                    owners.append(folder.name)
        return owners


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


def remove_folder(folder: Path) -> int:
    """Delete the blobs of an owner, and the folder unless it got a new blob at the same time."""
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
