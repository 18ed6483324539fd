"""Bytes from anywhere become an image in the store, or an error that names the cure."""

from __future__ import annotations

import binascii
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import anyio.to_thread

from storage.blobs import Blob, BlobStore
from storage.database import StorageError, StorageFull
from uploads.decoder import decode
from uploads.shape import Malformed, Shape
from uploads.sniff import HEAD, MediaType, recognise, walk

PIECE = 256 * 1024
"""Bytes written at once: a thread hop each, and what one upload holds in memory."""

BASE64_PIECE = 4 * 64 * 1024
"""Characters decoded at once; a multiple of four."""

DATA_URI = re.compile(r"data:([^,]{0,200});base64,", re.IGNORECASE)
EXTENSIONS: dict[MediaType, Literal["png", "jpg", "webp"]] = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
}


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image at rest: durable, and what it says it is."""

    blob: Blob
    media_type: MediaType
    width: int
    height: int

    @property
    def extension(self) -> Literal["png", "jpg", "webp"]:
        return EXTENSIONS[self.media_type]


class IntakeError(Exception):
    """The bytes do not become an image. Nothing of them was kept.

    message: one sentence naming the cure. truncated: they look cut off, so that fetching them again may help.
    """

    def __init__(
        self,
        code: Literal["invalid_image", "payload_too_large", "storage_full"],
        message: str,
        *,
        truncated: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.truncated = truncated


class Intake:
    """The way in.

    max_pixels: of one image, checked before anything is decoded. decoders: how many are looked into at once; each
    may take `DECODE_BYTES` of memory, the rest is flat.
    """

    def __init__(self, blobs: BlobStore, *, max_pixels: int, decoders: int = 2) -> None:
        self._blobs = blobs
        self._max_pixels = max_pixels
        self._decoders = anyio.CapacityLimiter(decoders)

    async def from_stream(self, owner: str, chunks: AsyncIterable[bytes], *, max_bytes: int) -> Image:
        """Read, prove and keep an image of at most `max_bytes`.

        1. judge the first kilobyte 2. write the rest to a draft 3. look at the whole 4. keep it.
        Raises `IntakeError`, `StorageError` when the store is out of order, and whatever `chunks` raises. `chunks`
        is left where it was when the answer was clear: who opened it closes it.
        """
        try:
            async with aclosing(_pieces(chunks, max_bytes)) as pieces:
                return await self._take(owner, pieces)
        except Malformed as error:
            raise IntakeError("invalid_image", error.message, truncated=error.truncated) from error
        except StorageFull as error:
            raise IntakeError("storage_full", str(error)) from error

    async def from_data_uri(self, owner: str, uri: str, *, max_bytes: int) -> Image:
        """The same for `data:image/png;base64,…`, or base64 alone. The type it declares is not looked at."""
        start = _base64_start(uri)
        if (len(uri) - start) // 4 * 3 > max_bytes + 2:  # two bytes may be padding
            raise _too_large(max_bytes)
        return await self.from_stream(owner, _decoded(uri, start), max_bytes=max_bytes)

    async def _take(self, owner: str, pieces: AsyncIterator[bytes]) -> Image:
        head = await anext(pieces, b"")
        media_type = recognise(head)
        async with self._blobs.draft(owner) as draft:
            await draft.write(head)
            async for piece in pieces:
                await draft.write(piece)
            look = partial(_look, draft.path, media_type, self._max_pixels)
            shape = await anyio.to_thread.run_sync(look, limiter=self._decoders)
            blob = await draft.keep(media_type)
        return Image(blob=blob, media_type=media_type, width=shape.width, height=shape.height)


def _look(path: Path, media_type: MediaType, max_pixels: int) -> Shape:
    """In a thread: the structure first, which bounds what a decoder can be made to do."""
    try:
        with path.open("rb") as file:
            shape = walk(file, media_type, max_pixels)
            decode(file, media_type, shape)
    except OSError as error:
        raise StorageError(
            f"the image cannot be read back ({error.strerror}): look at the disk of BROKER_BLOB_URL"
        ) from error
    return shape


async def _pieces(chunks: AsyncIterable[bytes], max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Chunks gathered to a small first piece, which tells the type, and large ones; counted while they are read."""
    total, held, wanted = 0, bytearray(), HEAD
    async for chunk in chunks:
        total += len(chunk)
        if total > max_bytes:
            raise _too_large(max_bytes)
        held += chunk
        if len(held) >= wanted:
            yield bytes(held)
            held.clear()
            wanted = PIECE
    if held:
        yield bytes(held)


def _too_large(max_bytes: int) -> IntakeError:
    return IntakeError("payload_too_large", f"the image is larger than {max_bytes:,} bytes: send a smaller one")


def _base64_start(uri: str) -> int:
    """Where the base64 begins: behind the comma of a data URI, or at once."""
    if match := DATA_URI.match(uri):
        return match.end()
    if uri[:5].lower() == "data:":
        raise IntakeError("invalid_image", "the data URI is not base64: send data:image/png;base64,…")
    if re.match(r"[a-z]+://", uri[:20], re.IGNORECASE):
        raise IntakeError("invalid_image", "this is a web address, not an image: send it in imageUrls")
    return 0


async def _decoded(uri: str, start: int) -> AsyncIterator[bytes]:
    for at in range(start, len(uri), BASE64_PIECE):
        text = uri[at : at + BASE64_PIECE]
        try:
            data = binascii.a2b_base64(text, strict_mode=True)
        except ValueError as error:
            raise _not_base64() from error
        if at + BASE64_PIECE < len(uri) and len(data) * 4 != BASE64_PIECE * 3:
            raise _not_base64()  # padding in the middle
        yield data


def _not_base64() -> IntakeError:
    return IntakeError(
        "invalid_image",
        "the image is not valid base64: use the standard alphabet with padding, no spaces or line breaks",
    )
