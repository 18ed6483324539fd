"""Blobs as objects of a bucket, on any store that speaks S3.

<prefix>/<owner>/<sha256>     a blob; all other objects, under the prefix or not, are left alone
<prefix>/.check               written, and deleted again, by `check`
<scratch>/<random>            a draft on the local disk, because a decoder needs a file

Decisions worth remembering

* Only obstore's blocking calls are used, in threads: its async calls abort short processes at exit.
* The threads are a pool of this store. The default executor also writes drafts, runs decoders and resolves names; a
  slow store would occupy all of its threads. A call that finds all threads of the pool busy waits for one; the wait
  counts as part of the call.
* An upload reads the draft through a file descriptor of its own, so a cancelled caller leaves at once; the upload finds
  the draft closed and stops. Either way the bucket has the whole blob or none of it.
* Equal bytes are uploaded again: the age of the object alone protects it from the sweep until its row is written.
* Unfinished multipart uploads of killed processes are removed by the bucket's lifecycle rule
  AbortIncompleteMultipartUpload.
"""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import obstore
from obstore.exceptions import BaseError, InvalidPathError

from storage.blobs import s3_errors
from storage.blobs.s3_client import open_bucket
from storage.blobs.staging import Blob, Disk, Draft, HashingFile, StagingArea, open_file
from storage.blobs.store import NAME, BlobMissing, BlobReader, Bucket, validate_owner
from storage.errors import StorageError

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta

T = TypeVar("T")
MIB: Final = 2**20
CHUNK_BYTES: Final = MIB
STREAM_CHUNK_BYTES: Final = 256 * 1024
"""Least that obstore collects before it returns a chunk; the last network read may exceed it."""
MIN_PART_BYTES: Final = 5 * MIB
"""Smallest part that S3 allows; smaller blobs are uploaded in one request."""
MAX_PARALLEL_PARTS: Final = 2
"""Bounds an upload to 15 MiB of memory, and leaves half of a slow line to each part."""
PAGE_SIZE: Final = 1000
MAX_LINK_SECONDS: Final = 7 * 86400
FOREVER: Final = timedelta(days=365)
DISK: Final = Disk(variable="BROKER_DATA_DIR", room="free some on the disk of BROKER_DATA_DIR")
MEDIA_TYPE: Final = "application/octet-stream"

_INVALID_KEY: Final = (
    "remove the objects with an empty part, `.` or `..` in their key from the prefix of BROKER_BLOB_URL"
)


class S3Blobs:
    """Blob store in one bucket, for any number of processes on any number of machines. Call `aclose` at the end.

    free_floor: bytes that stay free on the disk of `scratch`.
    connect_seconds: until a connection is open; a `check` takes at most twice as long.
    attempt_seconds: one request, or the wait for the next bytes of a download. retries: of one request, with
    back-off; all requests are safe to repeat. total_seconds: a whole call, including the wait for a thread.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        scratch: Path,
        free_floor: int = 0,
        attempt_seconds: float = 30.0,
        connect_seconds: float = 5.0,
        total_seconds: float = 300.0,
        retries: int = 8,
        threads: int = 16,
    ) -> None:
        prefix = bucket.prefix.strip("/")
        self._base = f"{prefix}/" if prefix else ""
        self._bucket = bucket
        self._total_seconds = total_seconds
        self._drafts = StagingArea(scratch, DISK, free_floor=free_floor)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="s3")
        store = partial(
            open_bucket,
            bucket,
            connect=connect_seconds,
            retries=retries,
            retry_seconds=total_seconds / 2,
        )
        self._calls = store(attempt=timedelta(seconds=attempt_seconds))
        # a slow reader makes a download long, so only the pauses between its bytes are limited
        self._reads = store(attempt=FOREVER, read=timedelta(seconds=attempt_seconds))
        # a check reports the present state, and its caller waits
        self._probe = store(attempt=timedelta(seconds=connect_seconds), retries=1)
        self._check_seconds = connect_seconds * 2

    async def aclose(self) -> None:
        """Wait for abandoned calls, then end the threads."""
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    def new_draft(self, owner: str) -> Draft:
        return Draft(self._drafts, partial(self._upload, validate_owner(owner)), self.call)

    async def open(self, name: str, start: int = 0, stop: int | None = None) -> BlobReader:
        if start < 0:
            raise ValueError("start counts from the first byte, it cannot be negative")
        return self._read(await self.call(partial(self._open, self._key_of(name), start, stop)))

    async def _read(self, result: GetResult | None) -> AsyncGenerator[bytes, None]:
        """Yield the body of a download; raise `StorageError` if it ends early."""
        if result is None:
            return
        stream, left = iter(result.stream(STREAM_CHUNK_BYTES)), result.range[1] - result.range[0]
        while left > 0:
            data = memoryview(await self.call(partial(next, stream, b"")))
            left -= len(data)
            if not data or left < 0:
                raise StorageError("the image store ended the connection in the middle of an image: try again")
            for start in range(0, len(data), CHUNK_BYTES):
                yield bytes(data[start : start + CHUNK_BYTES])

    async def delete(self, owner: str) -> int:
        removed = 0
        async for page in self._listed(self._base + validate_owner(owner)):
            keys = [meta["path"] for meta in page if self._named(meta["path"])]
            if keys:
                await self.call(partial(obstore.delete, self._calls, keys))
            removed += len(keys)
        return removed

    async def delete_of_owners(self, owners: Sequence[str]) -> None:
        await asyncio.gather(*map(self.delete, owners))

    async def delete_stale_drafts(self, older_than: float) -> int:
        """Delete those of this machine."""
        return await DISK.run(partial(self._drafts.sweep, older_than))

    async def list_owners(self, older_than: float, since: float = 0.0) -> list[str]:
        limit = time.time() - older_than  # the store's clock dates objects; it must be near ours
        newest: dict[str, float] = {}
        async for page in self._listed(self._base):
            for meta in page:
                if match := self._named(meta["path"]):
                    newest[match[1]] = max(newest.get(match[1], 0.0), meta["last_modified"].timestamp())
        return [owner for owner, at in newest.items() if since <= at <= limit]

    async def check(self) -> None:
        """Write a draft; write, list and delete an object. Raises `StorageError` and its cure without long retries."""
        await DISK.run(self._drafts.write_probe)
        await self.call(self._check_bucket, self._check_seconds)

    async def get_link(self, name: str, seconds: int) -> str | None:
        """Return a link of at most a week, the limit of S3."""
        if self._bucket.links == "none":
            return None
        key = self._key_of(name)
        if self._bucket.links == "public":
            return f"{(self._bucket.public_base or '').rstrip('/')}/{key}"
        valid = timedelta(seconds=max(1, min(seconds, MAX_LINK_SECONDS)))
        return await self.call(partial(obstore.sign, self._calls, "GET", key, valid))

    def path_below_root(self, name: str) -> str | None:
        return None

    async def call(self, work: Callable[[], T], seconds: float | None = None) -> T:
        """Run a call to the store in a thread of the pool, and translate its errors.

        A cancelled caller leaves at once; the call finishes in its thread.
        """
        try:
            async with asyncio.timeout(seconds or self._total_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, partial(_run_translated, work))
        except TimeoutError:
            raise s3_errors.storage_error_for(s3_errors.LATE) from None

    async def _listed(self, prefix: str) -> AsyncIterator[Sequence[ObjectMeta]]:
        """List whole folders only: obstore appends a slash to the prefix. One call per page, each with its own time."""
        pages = obstore.list(self._calls, prefix or None, chunk_size=PAGE_SIZE)
        while (page := await self.call(partial(next, pages, None))) is not None:
            yield page

    def _key_of(self, name: str) -> str:
        if NAME.fullmatch(name) is None:
            raise BlobMissing("image not found")
        return self._base + name

    def _named(self, key: str) -> re.Match[str] | None:
        return NAME.fullmatch(key.removeprefix(self._base)) if key.startswith(self._base) else None

    # -- in a thread

    def _upload(self, owner: str, file: HashingFile, media_type: str | None) -> Blob:
        source, sha256, size = _Source(file), file.sha256.hexdigest(), file.size
        key = f"{self._base}{owner}/{sha256}"
        large = size > MIN_PART_BYTES
        with source:
            obstore.put(
                self._calls,
                key,
                source,
                attributes={"Content-Type": media_type or MEDIA_TYPE},
                use_multipart=large,
                chunk_size=MIN_PART_BYTES,
                max_concurrency=MAX_PARALLEL_PARTS,
            )
        if large and obstore.head(self._calls, key)["size"] != size:
            raise StorageError("the image store accepted the upload and kept another size: try again")
        return Blob(name=f"{owner}/{sha256}", size=size, sha256=sha256)

    def _open(self, key: str, start: int, stop: int | None) -> GetResult | None:
        """Return the response with the range of bytes; None if the range is empty."""
        try:
            if stop is not None and stop <= start:
                obstore.head(self._calls, key)
                return None
            return obstore.get(self._reads, key, options=_range(start, stop))
        except (BaseError, FileNotFoundError) as error:
            status, code = s3_errors.parse_response(str(error))
            if status == "416":
                return None
            if status == "404" and code != "NoSuchBucket":
                raise BlobMissing("image not found") from None
            raise

    def _check_bucket(self) -> None:
        key = self._base + ".check"
        obstore.put(self._probe, key, b"ok", use_multipart=False)
        next(iter(obstore.list(self._probe, key, chunk_size=PAGE_SIZE)), None)
        obstore.delete(self._probe, [key])


class _Source(io.FileIO):
    """Draft as the upload reads it, until the draft is closed; small chunks keep memory flat."""

    def __init__(self, draft: HashingFile) -> None:
        super().__init__(str(draft.path), opener=open_file)
        self._draft = draft

    def read(self, size: int | None = -1, /) -> bytes:
        if self._draft.closed:
            raise StorageError("the draft was closed")
        return super().read(STREAM_CHUNK_BYTES if size is None or size < 0 else min(size, STREAM_CHUNK_BYTES)) or b""


def _run_translated(work: Callable[[], T]) -> T:
    """Run the call and translate its errors. Their causes are dropped: they may repeat addresses and the key."""
    try:
        return work()
    except InvalidPathError:
        raise s3_errors.storage_error_for(_INVALID_KEY) from None
    except BaseError as error:
        raise s3_errors.storage_error(str(error)) from None
    except OSError as error:
        # obstore raises FileNotFoundError without an errno when the bucket does not exist
        raise (DISK.storage_error(error) if error.errno else s3_errors.storage_error(str(error))) from None


def _range(start: int, stop: int | None) -> GetOptions:
    start = min(start, 2**62)
    if stop is None:
        return {"range": {"offset": start}} if start else {}
    return {"range": (start, min(stop, 2**63 - 1))}
