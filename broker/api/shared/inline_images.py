"""JSON responses that contain images as base64, streamed from the store: no image is ever in memory as a whole."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from broker.errors import ApiError
from storage.blobs.store import BlobMissing, BlobStore
from storage.images import StoredImage

_GROUP_BYTES: Final = 3
"""Base64 of every three bytes stands alone."""
_BEGIN_CHUNKS: Final = 3
"""The text before an image, its quotation mark, and its first bytes."""


@dataclass(frozen=True, kw_only=True)
class InlineImage:
    """Stands for a string in a document: the base64 of an image."""

    image: StoredImage
    prefix: str = ""
    """Written before it in the same string, like `data:image/png;base64,`; plain ASCII without quotes."""
    is_spaced: bool = False
    """One blank between the colon before it and the string."""

    @property
    def head(self) -> bytes:
        return f'{" " if self.is_spaced else ""}"{self.prefix}'.encode()

    @property
    def encoded_bytes(self) -> int:
        return len(self.head) + (self.image.size + 2) // _GROUP_BYTES * 4 + 1


def data_uri(image: StoredImage) -> InlineImage:
    """Return an image as a data URI."""
    return InlineImage(image=image, prefix=f"data:{image.media_type};base64,")


def split_document(document: Any) -> list[bytes | InlineImage]:
    """Return the JSON of a document in pieces, between which its images stand."""
    images, mark = list[InlineImage](), secrets.token_hex(16)

    def take(value: Any) -> str:
        if not isinstance(value, InlineImage):
            raise TypeError(f"{type(value).__name__} is not JSON")
        images.append(value)
        return mark

    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=take)
    pieces = [piece.encode("utf-8", "backslashreplace") for piece in text.split(f'"{mark}"')]
    return [pieces[0], *(part for pair in zip(images, pieces[1:], strict=True) for part in pair)]


async def stream_pieces(pieces: Sequence[bytes | InlineImage], blobs: BlobStore) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of `split_document`. Raises `BlobMissing` for an image that was deleted."""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        yield piece.head
        async with aclosing(encode_blob(blobs, piece.image)) as chunks:
            async for chunk in chunks:
                yield chunk
        yield b'"'


async def encode_blob(blobs: BlobStore, image: StoredImage) -> AsyncGenerator[bytes, None]:
    """Yield the base64 of a stored image, chunk by chunk."""
    left = b""
    async with aclosing(await blobs.open(image.blob)) as chunks:
        async for chunk in chunks:
            whole = left + chunk
            end = len(whole) - len(whole) % _GROUP_BYTES
            left = whole[end:]
            yield base64.b64encode(whole[:end])
    if left:
        yield base64.b64encode(left)


def image_json(
    document: Any, blobs: BlobStore, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """Return a document with `InlineImage` values as a response of known length."""
    pieces = split_document(document)
    length = sum(len(piece) if isinstance(piece, bytes) else piece.encoded_bytes for piece in pieces)
    fixed = {"content-type": "application/json", "cache-control": "no-store", "content-length": str(length)}
    return _ClosingResponse(stream_pieces(pieces, blobs), status, headers={**fixed, **(headers or {})})


class _ClosingResponse(StreamingResponse):
    """Begins when the first image is opened, and closes its stream in any case: the client may leave in the middle.

    Raises `ApiError` for an image that is gone, while that can be told: an answer that breaks off would be asked for
    again and again.
    """

    def __init__(self, stream: AsyncGenerator[bytes, None], status: int, headers: Mapping[str, str]) -> None:
        super().__init__(stream, status, headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._stream):
            begin = await self._read_begin()
            self.body_iterator = _chained(begin, self._stream)
            await super().__call__(scope, receive, send)

    async def _read_begin(self) -> list[bytes]:
        """Return the text before the first image, and the first bytes of it."""
        begin = list[bytes]()
        try:
            while len(begin) < _BEGIN_CHUNKS and (chunk := await anext(self._stream, None)) is not None:
                begin.append(chunk)
        except BlobMissing as error:
            raise ApiError("task_expired", "The images of this order are deleted: order them again.") from error
        return begin


async def _chained(begin: Sequence[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in begin:
        yield chunk
    async for chunk in rest:
        yield chunk
