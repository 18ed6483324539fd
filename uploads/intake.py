"""Intake of images: bytes from any source become a stored image, or an error that names the cure."""

from __future__ import annotations

import binascii
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Literal

from anyio import CapacityLimiter

from storage.blobs.staging import Blob
from storage.blobs.store import BlobStore
from storage.ids import new_image_name
from storage.images import Kind, StoredImage
from uploads.detect import HEAD_BYTES, MediaType, detect_type
from uploads.structure import InvalidImage
from uploads.validation import NeedsDecoder, ValidationLimits
from uploads.work import ImageWork, ThreadedWork

WRITE_SIZE_BYTES = 256 * 1024
"""Bytes written at once (one thread hop each), and the memory of one upload."""

DECODERS = 2
"""Large images validated at once."""

BASE64_CHUNK_CHARACTERS = 4 * 64 * 1024
"""Characters decoded at once; a multiple of four."""

DATA_URI = re.compile(r"data:([^,]{0,200});base64,", re.IGNORECASE)
EXTENSIONS: dict[MediaType, Literal["png", "jpg", "webp"]] = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
}


@dataclass(frozen=True, kw_only=True)
class AcceptedImage:
    """Stored image with its type and size."""

    blob: Blob
    media_type: MediaType
    width: int
    height: int

    @property
    def extension(self) -> Literal["png", "jpg", "webp"]:
        return EXTENSIONS[self.media_type]

    def to_row(self, *, owner: str, kind: Kind, position: int, now: float) -> StoredImage:
        """Return the row of this image, with a public name that cannot be guessed."""
        prefix = "generated" if kind == "result" else "reference"
        return StoredImage(
            name=new_image_name(prefix, now, self.extension),
            owner=owner,
            kind=kind,
            position=position,
            blob=self.blob.name,
            media_type=self.media_type,
            size=self.blob.size,
            width=self.width,
            height=self.height,
            sha256=self.blob.sha256,
            created_at=now,
        )


class Intake:
    """Validator and writer of incoming images.

    work: validates, and stores small images; the limits are its own. decoders: large images validated at once; each may
    take the memory of one decode, everything else is constant.
    """

    def __init__(self, blobs: BlobStore, work: ImageWork, *, decoders: int = DECODERS) -> None:
        self._blobs = blobs
        self._work = work
        self._decoders = CapacityLimiter(decoders)

    @classmethod
    def in_threads(cls, blobs: BlobStore, *, max_pixels: int, max_decode_bytes: int) -> Intake:
        """Return an intake that works in threads of this process."""
        limits = ValidationLimits(max_pixels=max_pixels, max_decode_bytes=max_decode_bytes)
        return cls(blobs, ThreadedWork(blobs, limits))

    async def from_stream(self, owner: str, chunks: AsyncIterable[bytes], *, max_bytes: int) -> AcceptedImage:
        """Read, validate and store an image of at most `max_bytes`.

        1. detect the type by the first kilobyte 2. write everything to a draft 3. validate it 4. store it. A small
        image is written only when it is valid. Raises `InvalidImage`, `StorageError` when the store is full or
        unavailable, and everything that `chunks` raises. `chunks` may be left before its end; the caller closes it.
        """
        async with aclosing(_regroup_chunks(chunks, max_bytes)) as pieces:
            piece = await anext(pieces, b"")
            media_type = detect_type(piece[:HEAD_BYTES])
            if len(piece) < WRITE_SIZE_BYTES:  # all there is
                with suppress(NeedsDecoder):
                    blob, pixels = await self._work.store_small(owner, piece, media_type)
                    return AcceptedImage(blob=blob, media_type=media_type, width=pixels.width, height=pixels.height)
            async with self._blobs.new_draft(owner) as draft:
                while piece:
                    await draft.write(piece)
                    piece = await anext(pieces, b"")
                async with self._decoders:
                    pixels = await self._work.validate_file(draft.path, media_type)
                blob = await draft.commit(media_type)
        return AcceptedImage(blob=blob, media_type=media_type, width=pixels.width, height=pixels.height)

    async def from_data_uri(self, owner: str, uri: str, *, max_bytes: int) -> AcceptedImage:
        """Store `data:image/png;base64,…` or bare base64 likewise. The declared type is ignored."""
        start = _base64_start(uri)
        if (len(uri) - start) // 4 * 3 > max_bytes + 2:  # two bytes may be padding
            raise _too_large(max_bytes)
        return await self.from_stream(owner, _decode_base64(uri, start), max_bytes=max_bytes)


async def _regroup_chunks(chunks: AsyncIterable[bytes], max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Regroup chunks into pieces of at least `WRITE_SIZE_BYTES`, but the last; count bytes while reading.

    The type is checked as soon as its bytes are there: what is not an image is not read to its end.
    """
    total, held, is_known = 0, bytearray(), False
    async for chunk in chunks:
        total += len(chunk)
        if total > max_bytes:
            raise _too_large(max_bytes)
        if not held and len(chunk) >= WRITE_SIZE_BYTES:
            yield chunk  # not copied
            is_known = True
            continue
        held += chunk
        if not is_known and len(held) >= HEAD_BYTES:
            detect_type(bytes(held[:HEAD_BYTES]))
            is_known = True
        if len(held) >= WRITE_SIZE_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _too_large(max_bytes: int) -> InvalidImage:
    problem = f"the image is larger than {max_bytes:,} bytes"
    return InvalidImage(problem, "send a smaller one", code="payload_too_large")


def _base64_start(uri: str) -> int:
    """Return the offset of the base64: after the comma of a data URI, or 0."""
    if match := DATA_URI.match(uri):
        return match.end()
    if uri[:5].lower() == "data:":
        raise InvalidImage("the data URI is not base64", "send data:image/png;base64,…")
    if re.match(r"[a-z]+://", uri[:20], re.IGNORECASE):
        raise InvalidImage("this is a web address, not an image", "send it in imageUrls")
    return 0


async def _decode_base64(uri: str, start: int) -> AsyncIterator[bytes]:
    for at in range(start, len(uri), BASE64_CHUNK_CHARACTERS):
        text = uri[at : at + BASE64_CHUNK_CHARACTERS]
        try:
            data = binascii.a2b_base64(text, strict_mode=True)
        except ValueError:
            data = b""
        is_last = at + BASE64_CHUNK_CHARACTERS >= len(uri)
        if not data or (not is_last and len(data) * 4 != BASE64_CHUNK_CHARACTERS * 3):  # padding in the middle
            cure = "use the standard alphabet with padding, no spaces or line breaks"
            raise InvalidImage("the image is not valid base64", cure)
        yield data
