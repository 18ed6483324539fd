"""Reference images of an order request: stored for an order, inspected for a dry run, compared for idempotency."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from broker.catalog import Catalog
from broker.clock import Clock
from broker.errors import ApiError, DownloadError
from broker.net.fetcher import Fetcher
from broker.ordering.own_images import OWN_PREFIX, OwnImages, own_image_gone
from broker.orders import (
    DataUriReference,
    OrderRequest,
    Reference,
    ReferenceSource,
    StoredReference,
    UploadedReference,
    UrlReference,
)
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
    own_images: OwnImages
    max_file_size_bytes: int

    async def store(
        self, caller: str, owner: str, request: OrderRequest, model: str, *, first: int = 0
    ) -> list[StoredImage]:
        """Store the images, and return their rows, not yet written. Raises `ApiError` for one that is not usable.

        first: position of the first one. The caller deletes `owner` if the rows are not written.
        """
        rows = []
        for position, sent in enumerate(request.sources, first):
            source = await self._find_own(caller, sent, request.host)
            try:
                image = await self._take_in(owner, source, self._max_bytes(model))
            except (InvalidImage, DownloadError, BlobMissing) as error:
                raise _reference_error(error, source) from error
            except StorageFull:
                await self.delete(owner, request.sources)
                raise
            rows.append(image.to_row(owner=owner, kind="reference", position=position, now=self.clock.now()))
        return rows

    async def inspect(self, caller: str, request: OrderRequest, model: str) -> None:
        """Raise `ApiError` where `store` would, and store nothing. Addresses of others are checked, not downloaded."""
        owner = reference_owner(new_batch_id(self.clock.now()))
        try:
            for sent in request.sources:
                source = await self._find_own(caller, sent, request.host)
                try:
                    if isinstance(source, UrlReference):
                        self.fetcher.check_url(source.url)
                    else:
                        await self._take_in(owner, source, self._max_bytes(model))
                except (InvalidImage, DownloadError, BlobMissing) as error:
                    raise _reference_error(error, source) from error
        finally:
            await self.delete(owner, request.sources)

    async def _find_own(self, caller: str, source: ReferenceSource, host: str | None) -> ReferenceSource:
        """Return our own image for our own address, wherever the caller wrote it. Raises `ApiError` if it is gone."""
        match source:
            case UrlReference(url=address):
                return await self.own_images.resolve(caller, address, host) or source
            case DataUriReference(text=address) if address.startswith(OWN_PREFIX):
                return await self.own_images.resolve(caller, address, host) or source
            case _:
                return source

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


def _reference_error(error: InvalidImage | DownloadError | BlobMissing, source: ReferenceSource) -> ApiError:
    """Return the API's error for a reference that could not be stored."""
    match error:
        case DownloadError():
            return ApiError("invalid_image", f"A reference image could not be fetched: {error}", field="imageUrls")
        case InvalidImage(code=code):
            return ApiError(code, str(error), field="image")
        case BlobMissing() if isinstance(source, StoredReference) and source.address:
            return own_image_gone(source.address)
        case BlobMissing():
            message = "The reference images of this task are deleted: order it again with its images."
            return ApiError("task_expired", message)


def example_references(count: int, base: str | None) -> tuple[Reference, ...]:
    """Return references as a provider would get them. base: where it would reach our images, if it can."""
    return tuple(
        Reference(
            name=f"reference-{number}",
            media_type="image/png",
            size=0,
            sha256="",
            url=f"{base}/uploads/references/reference-{number}" if base else None,
            read=_no_bytes,
        )
        for number in range(1, count + 1)
    )


async def _no_bytes() -> AsyncIterator[bytes]:
    for chunk in list[bytes]():
        yield chunk
