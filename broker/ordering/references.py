"""Reference images of an order request: stored for an order, inspected for a dry run, compared for idempotency."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from broker.catalog import Catalog
from broker.clock import Clock
from broker.errors import ApiError, DownloadError
from broker.net.fetcher import Fetcher
from broker.orders import DataUriReference, ReferenceSource, StoredReference, UploadedReference, UrlReference
from storage.blobs.store import BlobMissing, BlobStore
from storage.errors import StorageFull
from storage.ids import new_batch_id, reference_owner
from storage.images import StoredImage
from uploads.intake import AcceptedImage, Intake
from uploads.structure import InvalidImage


@dataclass(frozen=True, kw_only=True)
class ReferenceIntake:
    """Validates and stores reference images."""

    clock: Clock
    catalog: Catalog
    blobs: BlobStore
    intake: Intake
    fetcher: Fetcher
    max_file_size_bytes: int

    async def store(self, owner: str, sources: Sequence[ReferenceSource], model: str) -> list[StoredImage]:
        """Store the images, and return their rows, not yet written. Raises `ApiError` for one that is not usable.

        The caller deletes `owner` if the rows are not written.
        """
        try:
            rows = []
            for position, source in enumerate(sources):
                image = await self._take_in(owner, source, self._max_bytes(model))
                rows.append(image.to_row(owner=owner, kind="reference", position=position, now=self.clock.now()))
            return rows
        except (InvalidImage, DownloadError, BlobMissing) as error:
            raise _reference_error(error) from error
        except StorageFull:
            await self.delete(owner, sources)
            raise

    async def inspect(self, sources: Sequence[ReferenceSource], model: str) -> None:
        """Raise `ApiError` where `store` would, and store nothing. Addresses are checked, not downloaded."""
        owner = reference_owner(new_batch_id())
        try:
            for source in sources:
                if isinstance(source, UrlReference):
                    self.fetcher.check_url(source.url)
                else:
                    await self._take_in(owner, source, self._max_bytes(model))
        except (InvalidImage, DownloadError, BlobMissing) as error:
            raise _reference_error(error) from error
        finally:
            await self.delete(owner, sources)

    async def delete(self, owner: str, sources: Sequence[ReferenceSource]) -> None:
        """Delete the files that may have been stored for an owner."""
        if sources:
            await self.blobs.delete(owner)

    def _max_bytes(self, model: str) -> int:
        """Return the size limit of one reference: ours, or the model's if that is lower."""
        return min(self.max_file_size_bytes, self.catalog.resolve(model).max_reference_bytes)

    async def _take_in(self, owner: str, source: ReferenceSource, max_bytes: int) -> AcceptedImage:
        match source:
            case UploadedReference(chunks=chunks):
                return await self.intake.from_stream(owner, chunks, max_bytes=max_bytes)
            case DataUriReference(text=text):
                return await self.intake.from_data_uri(owner, text, max_bytes=max_bytes)
            case StoredReference(blob=blob):
                async with aclosing(await self.blobs.open(blob)) as chunks:
                    return await self.intake.from_stream(owner, chunks, max_bytes=max_bytes)
            case UrlReference(url=url):
                async with self.fetcher.open(url, max_bytes=max_bytes) as chunks:
                    return await self.intake.from_stream(owner, chunks, max_bytes=max_bytes)


async def hash_source(source: ReferenceSource) -> str:
    """Return the part of a reference in the fingerprint of a request. An upload is read and can be read again."""
    match source:
        case UrlReference(url=url):
            return url
        case StoredReference(sha256=sha256):
            return sha256
        case DataUriReference(text=text):
            return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        case UploadedReference(chunks=chunks):
            digest = hashlib.sha256()
            async for chunk in chunks:
                digest.update(chunk)
            return digest.hexdigest()


def _reference_error(error: InvalidImage | DownloadError | BlobMissing) -> ApiError:
    """Return the API's error for a reference that could not be stored."""
    match error:
        case DownloadError():
            return ApiError("invalid_image", f"A reference image could not be fetched: {error}", field="imageUrls")
        case InvalidImage(code=code):
            return ApiError(code, str(error), field="image")
        case BlobMissing():
            message = "The reference images of this task are deleted: order it again with its images."
            return ApiError("task_expired", message)
