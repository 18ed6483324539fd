"""Intake of images: bytes from any source become a stored image, or an error that names the cure."""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import anyio.to_thread

from storage.blobs.staging import Blob
from storage.blobs.store import BlobStore
from storage.errors import StorageError
from storage.ids import new_image_name
from storage.images import Kind, StoredImage
from uploads.detect import HEAD_BYTES, MediaType, detect_type, validate_structure
from uploads.structure import ImageInfo, InvalidImage

WRITE_SIZE_BYTES = 256 * 1024
"""Bytes written at once (one thread hop each), and the memory of one upload."""

SMALL_DECODE_BYTES = 8 * 2**20
"""Memory of a decode that is not worth waiting for a decoder."""

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

    max_pixels: limit of one image, checked before anything is decoded. max_decode_bytes: memory of one decode; larger
    images are rejected. decoders: images validated at once; each may take that memory, everything else is constant.
    """

    def __init__(self, blobs: BlobStore, *, max_pixels: int, max_decode_bytes: int, decoders: int = 2) -> None:
        self._blobs = blobs
        self._validate = partial(_validate_file, max_pixels=max_pixels, max_decode_bytes=max_decode_bytes)
        self._validate_small = partial(_validate_small, max_pixels=max_pixels, max_decode_bytes=max_decode_bytes)
        self._decoders = anyio.CapacityLimiter(decoders)

    async def from_stream(self, owner: str, chunks: AsyncIterable[bytes], *, max_bytes: int) -> AcceptedImage:
        """Read, validate and store an image of at most `max_bytes`.

        1. detect the type by the first kilobyte 2. write everything to a draft 3. validate it 4. store it. A small
        image is written only when it is valid, and all of that in one thread hop. Raises `InvalidImage`,
        `StorageError` when the store is full or unavailable, and everything that `chunks` raises. `chunks` may be left
        before its end; the caller closes it.
        """
        async with aclosing(_regroup_chunks(chunks, max_bytes)) as pieces:
            piece = await anext(pieces, b"")
            media_type = detect_type(piece[:HEAD_BYTES])
            if len(piece) < WRITE_SIZE_BYTES:  # all there is
                with suppress(_NeedsDecoder):
                    return await self._store_small(owner, piece, media_type)
            async with self._blobs.new_draft(owner) as draft:
                while piece:
                    await draft.write(piece)
                    piece = await anext(pieces, b"")
                info = await anyio.to_thread.run_sync(self._validate, draft.path, media_type, limiter=self._decoders)
                blob = await draft.commit(media_type)
        return AcceptedImage(blob=blob, media_type=media_type, width=info.width, height=info.height)

    async def _store_small(self, owner: str, data: bytes, media_type: MediaType) -> AcceptedImage:
        """Validate and store an image in one thread hop; raise `_NeedsDecoder` for one that takes much memory."""
        infos: list[ImageInfo] = []

        def check() -> None:
            infos.append(self._validate_small(data, media_type))

        blob = await self._blobs.new_draft(owner).store(data, check, media_type)
        return AcceptedImage(blob=blob, media_type=media_type, width=infos[0].width, height=infos[0].height)

    async def from_data_uri(self, owner: str, uri: str, *, max_bytes: int) -> AcceptedImage:
        """Store `data:image/png;base64,…` or bare base64 likewise. The declared type is ignored."""
        start = _base64_start(uri)
        if (len(uri) - start) // 4 * 3 > max_bytes + 2:  # two bytes may be padding
            raise _too_large(max_bytes)
        return await self.from_stream(owner, _decode_base64(uri, start), max_bytes=max_bytes)


class _NeedsDecoder(Exception):
    """The image is small, but decoding it is not: it needs one of the few decoders."""


def _validate_small(data: bytes, media_type: MediaType, *, max_pixels: int, max_decode_bytes: int) -> ImageInfo:
    from uploads.decoder import check_decodable

    file = io.BytesIO(data)
    info = validate_structure(file, media_type, max_pixels)
    if info.decode_bytes > SMALL_DECODE_BYTES:
        raise _NeedsDecoder
    check_decodable(file, media_type, info, max_decode_bytes)
    return info


def _validate_file(path: Path, media_type: MediaType, *, max_pixels: int, max_decode_bytes: int) -> ImageInfo:
    """Validate in a thread; the structure first, because it bounds the work of the decoder."""
    from uploads.decoder import check_decodable

    try:
        with path.open("rb") as file:
            info = validate_structure(file, media_type, max_pixels)
            check_decodable(file, media_type, info, max_decode_bytes)
    except OSError as error:
        raise StorageError(
            f"the image cannot be read back ({error.strerror}): look at the disk of BROKER_BLOB_URL"
        ) from error
    return info


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
