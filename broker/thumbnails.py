"""Stored thumbnails: looked up, or made once for all concurrent requests, and deleted with their image.

* Without a thumbnail (the image is too large or damaged, the disk is full, too many are being made) the route serves
  the image itself: a page with a slow picture is better than one with a gap.
* Image URLs are shared, so strangers may request any size. There are four sizes, two thumbnails are made at a time, and
  a request above `max_waiting` does not wait. A damaged image is not tried again in this process; after an error of the
  machine (full disk, no memory) the next attempt waits for `RETRY_AFTER_SECONDS`.
* A thumbnail is a row next to that of its image, written only while the task (for a reference: one of its tasks) has
  not expired, so that retention deletes both.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, cast

import anyio.to_thread

from broker.clock import Clock
from broker.logs import log
from broker.metrics import Metrics
from storage.blobs.staging import Blob, Draft
from storage.blobs.store import BlobMissing, BlobStore
from storage.errors import Stale, StorageError
from storage.ids import new_image_name
from storage.images import Images, Kind, StoredImage
from storage.tasks import Tasks
from uploads.thumbnails import (
    THUMBNAIL_SIZES,
    Thumbnail,
    ThumbnailError,
    ThumbnailSize,
    has_thumbnail,
    make_thumbnail,
    thumbnail_size,
)

CONCURRENCY: Final = 2
"""Thumbnails made at a time; each may take `MAX_MEMORY_BYTES` of memory."""
MAX_WAITING: Final = 50
WAIT_SECONDS: Final = 10.0
MAX_REMEMBERED_FAILURES: Final = 1000
RETRY_AFTER_SECONDS: Final = 30.0

_KINDS: Final = {size: cast("Kind", f"thumbnail-{size}") for size in THUMBNAIL_SIZES}

_Key = tuple[str, ThumbnailSize]


@dataclass(kw_only=True)
class Thumbnails:
    """Thumbnails of stored images; `aclose` cancels those being made."""

    clock: Clock
    tasks: Tasks
    images: Images
    blobs: BlobStore
    metrics: Metrics
    wait_seconds: float = WAIT_SECONDS
    max_waiting: int = MAX_WAITING
    max_remembered_failures: int = MAX_REMEMBERED_FAILURES
    _running: dict[_Key, asyncio.Task[StoredImage | None]] = field(default_factory=dict)
    _retry_at: dict[_Key, float] = field(default_factory=dict)
    """Monotonic times before which a failed thumbnail is not tried again; the oldest failure first."""
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENCY))
    _closed: bool = False

    async def find_or_make(self, image: StoredImage, requested_size: int) -> StoredImage | None:
        """Return the thumbnail that covers the requested longest side, or None where the image itself is to be served.

        Waits at most `wait_seconds`; the thumbnail is finished in any case.
        """
        if not has_thumbnail(image):
            return None
        size = thumbnail_size(image, requested_size)
        if existing := await self.images.get_at(image.owner, _KINDS[size], image.position):
            return existing
        task = self._running.get((image.name, size)) or self._start(image, size)
        if task is None:
            return None
        done, _ = await asyncio.wait({task}, timeout=self.wait_seconds)
        return task.result() if done and not task.cancelled() else None

    async def aclose(self) -> None:
        self._closed = True
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _start(self, image: StoredImage, size: ThumbnailSize) -> asyncio.Task[StoredImage | None] | None:
        key = (image.name, size)
        if self._closed or self.clock.monotonic() < self._retry_at.get(key, -math.inf):
            return None
        if len(self._running) >= self.max_waiting:
            self.metrics.thumbnails.labels("crowded").inc()
            return None
        task = self._running[key] = asyncio.create_task(self._make(image, size))
        task.add_done_callback(lambda _: self._running.pop(key))
        return task

    async def _make(self, image: StoredImage, size: ThumbnailSize) -> StoredImage | None:
        try:
            async with self._slots:
                stored = await self._insert(image, size, *await self._resize_and_store(image, size))
        except (ThumbnailError, BlobMissing, StorageError) as error:
            is_permanent = isinstance(error, ThumbnailError)
            self.metrics.thumbnails.labels("unshrinkable" if is_permanent else "no_store").inc()
            self._remember_failure((image.name, size), math.inf if is_permanent else RETRY_AFTER_SECONDS)
            log.warning("thumbnail not made", action="thumbnail_failed", owner=image.owner, reason=str(error))
            return None
        self.metrics.thumbnails.labels("made" if stored else "too_late").inc()
        return stored

    def _remember_failure(self, key: _Key, pause_seconds: float) -> None:
        self._retry_at.pop(key, None)
        self._retry_at[key] = self.clock.monotonic() + pause_seconds
        while len(self._retry_at) > self.max_remembered_failures:
            del self._retry_at[next(iter(self._retry_at))]

    async def _resize_and_store(self, image: StoredImage, size: ThumbnailSize) -> tuple[Thumbnail, Blob]:
        """1. Copy the image to a local file and check its hash 2. resize it in a thread 3. store the result."""
        async with self.blobs.new_draft(image.owner) as copy:
            await self._copy_image(image, copy)
            try:
                thumbnail = await anyio.to_thread.run_sync(make_thumbnail, copy.path, image, size)
            except OSError as error:
                raise StorageError(f"the copy of an image cannot be read ({error.strerror})") from error
            except MemoryError as error:
                raise StorageError("there is not enough memory for a thumbnail now") from error
        async with self.blobs.new_draft(image.owner) as draft:
            await draft.write(thumbnail.data)
            return thumbnail, await draft.commit("image/webp")

    async def _copy_image(self, image: StoredImage, copy: Draft) -> None:
        async with aclosing(await self.blobs.open(image.blob)) as chunks:
            async for chunk in chunks:
                await copy.write(chunk)
        if copy.sha256 != image.sha256:
            raise ThumbnailError("the image is damaged: its bytes are not those that were stored")

    async def _insert(
        self, image: StoredImage, size: ThumbnailSize, thumbnail: Thumbnail, blob: Blob
    ) -> StoredImage | None:
        """Insert the row, or return that of a faster process; None if the image has been deleted."""
        now = self.clock.now()
        row = StoredImage(
            name=new_image_name("thumbnail", now, "webp"),
            owner=image.owner,
            kind=_KINDS[size],
            position=image.position,
            blob=blob.name,
            media_type="image/webp",
            size=blob.size,
            width=thumbnail.width,
            height=thumbnail.height,
            sha256=blob.sha256,
            created_at=now,
        )
        with contextlib.suppress(Stale):
            await self.tasks.database.transact(self.tasks.lock_owner(image.owner), self.images.insert_image(row))
        return await self.images.get_at(image.owner, row.kind, row.position)
