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
* Equal bytes are uploaded again when the object is old: its age alone protects it from the sweep until its row is
  written.
* Unfinished multipart uploads of killed processes are removed by the bucket's lifecycle rule
  AbortIncompleteMultipartUpload.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import obstore
from obstore.exceptions import BaseError, InvalidPathError

from storage.blobs import s3_errors
from storage.blobs.s3_client import open_bucket, static_credential
from storage.blobs.staging import Blob, Disk, Draft, HashingFile, StagingArea
from storage.blobs.store import NAME, BlobMissing, BlobReader, validate_owner
from storage.errors import StorageError

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from typing_extensions import Buffer

T = TypeVar("T")
MIB: Final = 2**20
CHUNK_BYTES: Final = MIB
STREAM_CHUNK_BYTES: Final = 256 * 1024
"""Least that obstore collects before it returns a chunk; the last network read may exceed it."""
MIN_PART_BYTES: Final = 5 * MIB
"""Smallest part that S3 allows; smaller blobs are uploaded in one request."""
MAX_PARALLEL_PARTS: Final = 2
"""Bounds an upload to 15 MiB of memory, and leaves half of a slow line to each part."""
FRESH_SECONDS: Final = 600.0
"""Age below which an object is not uploaded again; far below the age at which objects are swept."""
PAGE_SIZE: Final = 1000
MAX_LINK_SECONDS: Final = 7 * 86400
FOREVER: Final = timedelta(days=365)
DISK: Final = Disk(variable="BROKER_DATA_DIR", room="free some on the disk of BROKER_DATA_DIR")
MEDIA_TYPE: Final = "application/octet-stream"
BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
PREFIX: Final = re.compile(r"(?!\.{1,2}(/|$))[A-Za-z0-9._-]+(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]+)*")
ENDPOINT: Final = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")

_INVALID_KEY: Final = (
    "remove the objects with an empty part, `.` or `..` in their key from the prefix of BROKER_BLOB_URL"
)

Links = Literal["none", "presigned", "public"]


class S3Blobs:
    """Blob store in one bucket, for any number of processes on any number of machines. Call `aclose` at the end.

    endpoint: None for AWS itself, else `http[s]://host[:port]`; the bucket becomes part of the path.
    access_key, secret_key, session_token: None to use the environment, a web identity or the machine's role.
    links: kind of links that `link` returns; "public" needs `public_base`, the public URL of the bucket's keys.
    free_floor: bytes that stay free on the disk of `scratch`.
    connect_seconds: until a connection is open; a `check` takes at most twice as long.
    attempt_seconds: one request, or the wait for the next bytes of a download. retries: of one request, with
    back-off; all requests are safe to repeat. total_seconds: a whole call, including the wait for a thread.
    """

    def __init__(
        self,
        *,
        bucket: str,
        prefix: str = "",
        scratch: Path,
        endpoint: str | None = None,
        region: str = "us-east-1",
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
        links: Links = "none",
        public_base: str | None = None,
        free_floor: int = 0,
        attempt_seconds: float = 30.0,
        connect_seconds: float = 5.0,
        total_seconds: float = 300.0,
        retries: int = 8,
        threads: int = 16,
    ) -> None:
        prefix, endpoint = prefix.strip("/"), endpoint and endpoint.rstrip("/")
        _validate(bucket, prefix, endpoint)
        if links == "public" and not public_base:
            raise ValueError("public links need the public address of the bucket")
        self._base = f"{prefix}/" if prefix else ""
        self._links = links
        self._public_base = (public_base or "").rstrip("/")
        self._total_seconds = total_seconds
        self._drafts = StagingArea(scratch, DISK, free_floor=free_floor)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="s3")
        store = partial(
            open_bucket,
            bucket,
            endpoint,
            region,
            static_credential(access_key, secret_key, session_token),
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
        return Draft(self._drafts, partial(self._commit, validate_owner(owner)))

    async def open(self, name: str, start: int = 0, stop: int | None = None) -> BlobReader:
        if start < 0:
            raise ValueError("start counts from the first byte, it cannot be negative")
        return _S3Reader(self, await self.call(partial(self._open, self._key_of(name), start, stop)))

    async def delete(self, owner: str) -> int:
        removed = 0
        async for page in self._listed(self._base + validate_owner(owner)):
            keys = [meta["path"] for meta in page if self._named(meta["path"])]
            if keys:
                await self.call(partial(obstore.delete, self._calls, keys))
            removed += len(keys)
        return removed

    async def delete_stale_drafts(self, older_than: float) -> int:
        """Remove drafts that stopped writers left on this machine.

        Unfinished multipart uploads are removed by the bucket's lifecycle rule AbortIncompleteMultipartUpload.
        """
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
        if self._links == "none":
            return None
        key = self._key_of(name)
        if self._links == "public":
            return f"{self._public_base}/{key}"
        valid = timedelta(seconds=max(1, min(seconds, MAX_LINK_SECONDS)))
        return await self.call(partial(obstore.sign, self._calls, "GET", key, valid))

    async def call(self, work: Callable[[], T], seconds: float | None = None) -> T:
        """Run a call to the store in a thread of the pool, and translate its errors.

        A cancelled caller leaves at once; the call finishes in its thread.
        """
        try:
            async with asyncio.timeout(seconds or self._total_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, partial(_run_translated, work))
        except TimeoutError:
            raise s3_errors.storage_error_for(s3_errors.LATE) from None

    async def _commit(self, owner: str, file: HashingFile, media_type: str | None) -> Blob:
        return await self.call(partial(self._upload_once, owner, file, media_type or MEDIA_TYPE))

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

    def _upload_once(self, owner: str, file: HashingFile, media_type: str) -> Blob:
        """Upload the blob unless the bucket has a fresh object of its name and size; return it."""
        with file.lock:
            source, sha256, size = _Source(file), file.sha256.hexdigest(), file.size
        name = f"{owner}/{sha256}"
        with source:
            if not self._exists(self._base + name, size, not_before=time.time() - FRESH_SECONDS):
                self._upload(self._base + name, source, size, media_type)
        return Blob(name=name, size=size, sha256=sha256)

    def _upload(self, key: str, source: _Source, size: int, media_type: str) -> None:
        large = size > MIN_PART_BYTES
        obstore.put(
            self._calls,
            key,
            source,
            attributes={"Content-Type": media_type},
            use_multipart=large,
            chunk_size=MIN_PART_BYTES,
            max_concurrency=MAX_PARALLEL_PARTS,
        )
        if large and not self._exists(key, size):
            raise StorageError("the image store accepted the upload and kept another size: try again")

    def _exists(self, key: str, size: int, *, not_before: float = 0.0) -> bool:
        try:
            meta = obstore.head(self._calls, key)
        except FileNotFoundError:
            return False
        return meta["size"] == size and meta["last_modified"].timestamp() >= not_before

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
        super().__init__(str(draft.path), opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW))
        self._draft = draft

    def read(self, size: int | None = -1, /) -> bytes:
        if self._draft.closed:
            raise StorageError("the draft was closed")
        return super().read(STREAM_CHUNK_BYTES if size is None or size < 0 else min(size, STREAM_CHUNK_BYTES)) or b""


class _S3Reader:
    """Body of a download; raises `StorageError` if it ends early."""

    def __init__(self, store: S3Blobs, result: GetResult | None) -> None:
        self._store = store
        self._stream: Iterator[Buffer] = iter(result.stream(STREAM_CHUNK_BYTES)) if result else iter(())
        self._left = result.range[1] - result.range[0] if result else 0
        self._rest = memoryview(b"")

    def __aiter__(self) -> _S3Reader:
        return self

    async def __anext__(self) -> bytes:
        if not self._rest and self._left > 0:
            await self._fetch()
        if not self._rest:
            await self.aclose()
            raise StopAsyncIteration
        chunk, self._rest = self._rest[:CHUNK_BYTES], self._rest[CHUNK_BYTES:]
        return bytes(chunk)

    async def _fetch(self) -> None:
        """Read the next bytes. After an error or a cancellation the stream is gone, so that no bytes are left out."""
        stream, self._stream = self._stream, iter(())
        data = memoryview(await self._store.call(partial(next, stream, b"")))
        self._left -= len(data)
        if not data or self._left < 0:
            raise StorageError("the image store ended the connection in the middle of an image: try again")
        self._rest, self._stream = data, stream

    async def aclose(self) -> None:
        """Drop the stream, and its connection with it."""
        self._left, self._rest, self._stream = 0, memoryview(b""), iter(())


def _validate(bucket: str, prefix: str, endpoint: str | None) -> None:
    """Accept only names that need no quoting, because keys are compared as they are. Raises `ValueError`."""
    if BUCKET.fullmatch(bucket) is None or (prefix and PREFIX.fullmatch(prefix) is None):
        raise ValueError("BROKER_BLOB_URL is s3://bucket/prefix, of letters, digits, dots, dashes and underscores")
    if endpoint is not None and ENDPOINT.fullmatch(endpoint) is None:
        raise ValueError(f"{s3_errors.ENDPOINT} begins with http:// or https:// and names a host, without a key")


def _run_translated(work: Callable[[], T]) -> T:
    """Run the call and translate its errors. Their causes are dropped: they may repeat addresses and the key."""
    try:
        return work()
    except InvalidPathError:
        raise s3_errors.storage_error_for(_INVALID_KEY) from None
    except BaseError as error:
        raise s3_errors.storage_error(str(error)) from None
    except OSError as error:
        raise _os_error(error) from None


def _os_error(error: OSError) -> StorageError:
    """Translate an OSError. obstore raises FileNotFoundError without an errno when the bucket does not exist."""
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return s3_errors.storage_error(str(error))
    return DISK.storage_error(error)


def _range(start: int, stop: int | None) -> GetOptions:
    start = min(start, 2**62)
    if stop is None:
        return {"range": {"offset": start}} if start else {}
    return {"range": (start, min(stop, 2**63 - 1))}
