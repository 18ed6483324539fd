"""Structure check of WebP: a RIFF file of exactly its declared length, with one still picture."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from uploads.structure import (
    SAVE_AGAIN,
    ImageInfo,
    InvalidImage,
    ParseBudget,
    Source,
    check_size,
    trailing_data,
    truncated,
)

RIFF, KIND = b"RIFF", b"WEBP"
ANIMATED = 0x02
MAX_CHUNKS = 1_000
PICTURE_HEADER = 10
BYTES_PER_PIXEL = 16
"""Measured: two canvases of the decoder, its output, and the copy in Pillow; four bytes each."""


def validate_structure(source: Source, max_pixels: int) -> ImageInfo:
    """Check a whole file and return its size; raises `InvalidImage`."""
    end = _find_end(source)
    budget = ParseBudget(MAX_CHUNKS)
    canvas: tuple[int, int] | None = None
    picture: tuple[int, int] | None = None
    for index, (kind, body) in enumerate(_read_chunks(source, end, budget)):
        if kind == b"VP8X" and index == 0:
            canvas = _parse_canvas(body)
            check_size(*canvas, max_pixels)
        elif kind in {b"VP8 ", b"VP8L"} and picture is None:
            picture = _parse_lossy(body) if kind == b"VP8 " else _parse_lossless(body)
            check_size(*picture, max_pixels)
        elif kind in {b"ANIM", b"ANMF"}:
            raise _animated_error()
        elif kind in {b"VP8X", b"VP8 ", b"VP8L"}:
            raise InvalidImage(f"the parts of the WebP are out of order: {SAVE_AGAIN}")
    if picture is None or (canvas or picture) != picture:
        raise InvalidImage(f"the WebP has no picture of its declared size: {SAVE_AGAIN}")
    width, height = picture
    return ImageInfo(width=width, height=height, decode_bytes=BYTES_PER_PIXEL * width * height + 2 * source.size)


def _find_end(source: Source) -> int:
    """Return the offset of the RIFF's end: the end of the file, or one padding byte before."""
    length = int.from_bytes(source.read_exactly(12)[4:8], "little")
    end = 8 + length
    if end > source.size:
        raise truncated()
    padding = source.size - end
    if padding > length % 2:
        raise trailing_data()
    return end


def _read_chunks(source: Source, end: int, budget: ParseBudget) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and first bytes of every chunk."""
    while source.position < end:
        kind, length = struct.unpack("<4sI", source.read_exactly(min(8, end - source.position)).ljust(8, b"\xff"))
        if source.position + length > end:  # or fewer than the eight bytes of a header are left
            raise InvalidImage(f"the WebP is damaged, a part of it is longer than the file: {SAVE_AGAIN}")
        if kind in {b"VP8 ", b"VP8L", b"ALPH"}:
            budget.count_part()
        else:
            budget.count_metadata(length)
        following = source.position + length
        yield kind, source.read_exactly(min(length, PICTURE_HEADER))
        source.seek(min(following + length % 2, source.size))


def _parse_canvas(body: bytes) -> tuple[int, int]:
    if len(body) < PICTURE_HEADER:
        raise _bad_header()
    if body[0] & ANIMATED:
        raise _animated_error()
    return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")


def _parse_lossy(body: bytes) -> tuple[int, int]:
    if len(body) < PICTURE_HEADER or body[0] & 1 or body[3:6] != b"\x9d\x01\x2a":
        raise _bad_header()
    width, height = struct.unpack("<HH", body[6:10])
    return width & 0x3FFF, height & 0x3FFF


def _parse_lossless(body: bytes) -> tuple[int, int]:
    if len(body) < 5 or body[0] != 0x2F:
        raise _bad_header()
    bits = int.from_bytes(body[1:5], "little")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


def _bad_header() -> InvalidImage:
    return InvalidImage(f"the WebP is damaged, its header makes no sense: {SAVE_AGAIN}")


def _animated_error() -> InvalidImage:
    return InvalidImage("this WebP is animated: send a single picture")
