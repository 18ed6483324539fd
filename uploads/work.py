"""The blocking work on images: its contract, and the work in threads."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import anyio.to_thread

from storage.blobs.staging import Blob
from storage.blobs.store import BlobStore
from uploads.detect import MediaType
from uploads.structure import ImageInfo
from uploads.validation import ValidationLimits, validate_file, validate_small


class Dimensions(NamedTuple):
    """Pixels of a validated image."""

    width: int
    height: int


class ImageWork(Protocol):
    """Validates images and stores small ones, outside the event loop. A cancelled caller waits for the end of its work.

    Nothing was stored where a method raises.
    """

    async def store_small(self, owner: str, data: bytes, media_type: MediaType) -> tuple[Blob, Dimensions]:
        """Validate an image that is whole in memory, and store it.

        Raises `InvalidImage`, `NeedsDecoder` for one that takes much memory, `StorageError`, and `ValueError` for an
        invalid owner.
        """

    async def validate_file(self, path: Path, media_type: MediaType) -> Dimensions:
        """Validate an image in a file. Raises `InvalidImage`, and `StorageError` if it cannot be read."""


class ThreadedWork:
    """Work in threads of this process: for commands and tests, which see few images."""

    def __init__(self, blobs: BlobStore, limits: ValidationLimits) -> None:
        self._blobs = blobs
        self._limits = limits

    async def store_small(self, owner: str, data: bytes, media_type: MediaType) -> tuple[Blob, Dimensions]:
        """Validate and store in one thread hop."""
        infos: list[ImageInfo] = []

        def check() -> None:
            infos.append(validate_small(data, media_type, self._limits))

        blob = await self._blobs.new_draft(owner).store(data, check, media_type)
        return blob, Dimensions(infos[0].width, infos[0].height)

    async def validate_file(self, path: Path, media_type: MediaType) -> Dimensions:
        info = await anyio.to_thread.run_sync(validate_file, path, media_type, self._limits)
        return Dimensions(info.width, info.height)
