"""Results as PNG, the only type that clients of the chat service expect."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final

import anyio.to_thread

from storage.blobs.store import BlobStore
from storage.errors import StorageError
from storage.images import StoredImage
from uploads.conversion import can_convert, convert_to_png

CONCURRENCY: Final = 1
"""Copies made at a time; each may take `MAX_MEMORY_BYTES` of memory."""


@dataclass(frozen=True, kw_only=True)
class PngCopies:
    """PNG copies of results, stored beside them and deleted with them."""

    blobs: BlobStore
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENCY))

    async def as_png(self, image: StoredImage) -> StoredImage:
        """Return the image if it is a PNG or too large to be converted, else its copy.

        The copy has no row: its owner's files are deleted together. Raises `StorageError` and `BlobMissing`.
        """
        if not can_convert(image.media_type, image.width, image.height):
            return image
        async with self._slots:
            content = await self._convert(image)
            async with self.blobs.new_draft(image.owner) as draft:
                await draft.write(content)
                blob = await draft.commit("image/png")
        return replace(image, blob=blob.name, media_type="image/png", size=blob.size, sha256=blob.sha256)

    async def _convert(self, image: StoredImage) -> bytes:
        async with self.blobs.new_draft(image.owner) as copy:
            async with aclosing(await self.blobs.open(image.blob)) as chunks:
                async for chunk in chunks:
                    await copy.write(chunk)
            try:
                return await anyio.to_thread.run_sync(convert_to_png, copy.path, image.media_type)
            except (OSError, MemoryError) as error:
                raise StorageError(f"the image cannot be converted to PNG now ({error}): try again") from error
