"""Thumbnails at rest: looked up, or made once for everybody who waits, and gone with their image.

Decisions worth remembering

* Where no thumbnail can be had (an image too large for us, a damaged one, a full disk, too many wishes at once) the
  door serves the image itself: a page with a slow picture is better than one with a hole.
* Names of images are passed on, so anybody may ask. There are four sizes, two are made at a time, and whoever finds
  the line full does not wait. What could not be made is not tried again in this process; where the machine was to
  blame (a full disk, no memory), not before some seconds have passed.
* A thumbnail is a row beside that of its image, written only while the task (for a reference: one of its orders) is
  not expired. So retention takes it along, whichever of the two comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections import OrderedDict
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio.to_thread

from broker.clock import Clock
from broker.logs import log
from broker.metrics import Metrics
from storage.blobs import Blob, BlobMissing, BlobStore, Draft
from storage.database import Stale, StorageError
from storage.images import Images, Kind, StoredImage
from storage.tasks import Tasks
from uploads.thumbnails import Rung, Thumbnail, Unshrinkable, rung_for, shrink, shrinkable

MAKERS: Final = 2
"""Each may take `DECODE_BYTES` of memory for a moment."""
MOST_WAITING: Final = 50
PATIENCE: Final = 10.0
MOST_MISSED: Final = 1000
PAUSE: Final = 30.0
"""Seconds until the next try where the machine was to blame: a try may cost a whole decode, and anybody may ask."""
PIECE: Final = 256 * 1024

_KINDS: Final[dict[Rung, Kind]] = {
    128: "thumbnail-128",
    256: "thumbnail-256",
    512: "thumbnail-512",
    1024: "thumbnail-1024",
}

Wish = tuple[str, Rung]


@dataclass(kw_only=True)
class Thumbnails:
    """Close it in the end: what is being made then is given up."""

    clock: Clock
    tasks: Tasks
    images: Images
    blobs: BlobStore
    metrics: Metrics
    patience: float = PATIENCE
    most_waiting: int = MOST_WAITING
    _making: dict[Wish, asyncio.Task[StoredImage | None]] = field(default_factory=dict)
    _not_before: OrderedDict[Wish, float] = field(default_factory=OrderedDict)
    _makers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAKERS))
    _closed: bool = False

    async def of(self, image: StoredImage, longest: int) -> StoredImage | None:
        """The thumbnail whose longest side is the next one from `longest` up; None where the image itself must do."""
        if not shrinkable(image):
            return None
        rung = rung_for(image, longest)
        there = await self.images.at(image.owner, _KINDS[rung], image.position)
        return there or await self._made(image, rung)

    async def aclose(self) -> None:
        self._closed = True
        making = list(self._making.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)

    async def _made(self, image: StoredImage, rung: Rung) -> StoredImage | None:
        """Wait for it, together with all who want the same, but not for ever; it is made all the same."""
        making = self._making.get((image.name, rung)) or self._begin(image, rung)
        if making is None:
            return None
        done, _ = await asyncio.wait({making}, timeout=self.patience)
        return making.result() if done and not making.cancelled() else None

    def _begin(self, image: StoredImage, rung: Rung) -> asyncio.Task[StoredImage | None] | None:
        wish = (image.name, rung)
        if self._closed or self.clock.monotonic() < self._not_before.get(wish, -math.inf):
            return None
        if len(self._making) >= self.most_waiting:
            self.metrics.thumbnails.labels("crowded").inc()
            return None
        making = self._making[wish] = asyncio.ensure_future(self._make(image, rung))
        making.add_done_callback(lambda _: self._making.pop(wish))
        return making

    async def _make(self, image: StoredImage, rung: Rung) -> StoredImage | None:
        try:
            async with self._makers:
                made = await self._write(image, rung, *await self._shrunk(image, rung))
        except (Unshrinkable, BlobMissing, StorageError) as error:
            self._missed(image, rung, error)
            return None
        self.metrics.thumbnails.labels("made" if made else "too_late").inc()
        return made

    def _missed(self, image: StoredImage, rung: Rung, error: Exception) -> None:
        outcome = "unshrinkable" if isinstance(error, Unshrinkable) else "no_store"
        self.metrics.thumbnails.labels(outcome).inc()
        log.warning("a thumbnail could not be made", action="thumbnail_missed", owner=image.owner, why=str(error))
        hopeless = isinstance(error, Unshrinkable)
        self._remember((image.name, rung), math.inf if hopeless else self.clock.monotonic() + PAUSE)

    def _remember(self, wish: Wish, not_before: float) -> None:
        self._not_before[wish] = not_before
        self._not_before.move_to_end(wish)
        while len(self._not_before) > MOST_MISSED:
            self._not_before.popitem(last=False)

    async def _shrunk(self, image: StoredImage, rung: Rung) -> tuple[Thumbnail, Blob]:
        """1. the image into a local file, where it is hashed again 2. shrunk in a thread 3. kept beside the image."""
        async with self.blobs.draft(image.owner) as copy:
            await self._copy(image, copy)
            work = partial(shrink, copy.path, image, rung)
            try:
                small = await anyio.to_thread.run_sync(work)
            except OSError as error:
                raise StorageError(f"the copy of an image cannot be read ({error.strerror})") from error
            except MemoryError as error:
                raise StorageError("there is not enough memory for a thumbnail now") from error
        async with self.blobs.draft(image.owner) as draft:
            await draft.write(small.data)
            return small, await draft.keep("image/webp")

    async def _copy(self, image: StoredImage, copy: Draft) -> None:
        held = bytearray()
        async with aclosing(await self.blobs.open(image.blob)) as chunks:
            async for chunk in chunks:
                held += chunk
                if len(held) >= PIECE:
                    await copy.write(bytes(held))
                    held.clear()
        await copy.write(bytes(held))
        if copy.sha256 != image.sha256:
            raise Unshrinkable("the image is damaged: it is not what was stored")

    async def _write(self, image: StoredImage, rung: Rung, small: Thumbnail, blob: Blob) -> StoredImage | None:
        """The row, unless another process was quicker: then theirs. None if the image is forgotten meanwhile."""
        row = StoredImage(
            name=f"thumbnail_{secrets.token_hex(16)}.webp",
            owner=image.owner,
            kind=_KINDS[rung],
            position=image.position,
            blob=blob.name,
            media_type="image/webp",
            size=blob.size,
            width=small.width,
            height=small.height,
            sha256=blob.sha256,
            created_at=self.clock.now(),
        )
        with contextlib.suppress(Stale):
            await self.tasks.database.transact(self.tasks.pinning_owner(image.owner), self.images.adding(row))
        return await self.images.at(image.owner, row.kind, row.position)
