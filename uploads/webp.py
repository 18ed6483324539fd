"""Structure check of WebP: a RIFF file of exactly its declared length, with one still picture."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from uploads.structure import (
    SEND_SINGLE,
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
        if kind in {b"ANIM", b"ANMF"}:
            raise InvalidImage("this WebP is animated", SEND_SINGLE)
        if kind not in {b"VP8X", b"VP8 ", b"VP8L"}:
            continue
        if picture is not None or (kind == b"VP8X" and index > 0):
            raise InvalidImage("the parts of the WebP are out of order")
        size = _parse_size(kind, body)
        check_size(*size, max_pixels)
        if kind == b"VP8X":
            canvas = size
        else:
            picture = size
    if picture is None or (canvas or picture) != picture:
        raise InvalidImage("the WebP has no picture of its declared size")
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
            raise InvalidImage("the WebP is damaged, a part of it is longer than the file")
        if kind in {b"VP8 ", b"VP8L", b"ALPH"}:
            budget.count_part()
        else:
            budget.count_metadata(length)
        following = source.position + length
        yield kind, source.read_exactly(min(length, PICTURE_HEADER))
        source.seek(min(following + length % 2, source.size))


def _parse_size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Return the size in the header of a canvas (VP8X), a lossy (VP8) or a lossless (VP8L) picture."""
    if kind == b"VP8X" and len(body) == PICTURE_HEADER:
        if body[0] & ANIMATED:
            raise InvalidImage("this WebP is animated", SEND_SINGLE)
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8 " and len(body) == PICTURE_HEADER and not body[0] & 1 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise InvalidImage("the WebP is damaged, its header makes no sense")
