"""WebP: a RIFF file whose length is that of the file, with one still picture inside."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from uploads.shape import MEND, Allowance, Malformed, Shape, Source, check_size, cut_off, followed

RIFF, KIND = b"RIFF", b"WEBP"
ANIMATED = 0x02
MAX_CHUNKS = 1_000
PICTURE_HEADER = 10
BYTES_PER_PIXEL = 16
"""Two canvases of the decoder, what it hands over and what Pillow makes of it: four bytes each, as measured."""


def walk(source: Source, max_pixels: int) -> Shape:
    end = _end(source)
    allowance = Allowance(MAX_CHUNKS)
    canvas: tuple[int, int] | None = None
    picture: tuple[int, int] | None = None
    for index, (kind, body) in enumerate(_chunks(source, end, allowance)):
        if kind == b"VP8X" and index == 0:
            canvas = _canvas(body)
            check_size(*canvas, max_pixels)
        elif kind in {b"VP8 ", b"VP8L"} and picture is None:
            picture = _lossy(body) if kind == b"VP8 " else _lossless(body)
            check_size(*picture, max_pixels)
        elif kind in {b"ANIM", b"ANMF"}:
            raise _animated()
        elif kind in {b"VP8X", b"VP8 ", b"VP8L"}:
            raise Malformed(f"the parts of the WebP are out of order: {MEND}")
    if picture is None or (canvas or picture) != picture:
        raise Malformed(f"the WebP has no picture of the size it says: {MEND}")
    width, height = picture
    return Shape(width=width, height=height, decode_bytes=BYTES_PER_PIXEL * width * height + 2 * source.size)


def _end(source: Source) -> int:
    """Where the RIFF ends: at the end of the file, or a padding byte before."""
    length = int.from_bytes(source.take(12)[4:8], "little")
    end = 8 + length
    if end > source.size:
        raise cut_off()
    padding = source.size - end
    if padding > length % 2:
        raise followed()
    return end


def _chunks(source: Source, end: int, allowance: Allowance) -> Iterator[tuple[bytes, bytes]]:
    """Kind and first bytes of every chunk."""
    while source.at < end:
        kind, length = struct.unpack("<4sI", source.take(min(8, end - source.at)).ljust(8, b"\xff"))
        if source.at + length > end:  # or fewer than the eight bytes of a header are left
            raise Malformed(f"the WebP is damaged, a part of it is longer than the file: {MEND}")
        if kind in {b"VP8 ", b"VP8L", b"ALPH"}:
            allowance.part()
        else:
            allowance.metadata(length)
        following = source.at + length
        yield kind, source.take(min(length, PICTURE_HEADER))
        source.go(min(following + length % 2, source.size))


def _canvas(body: bytes) -> tuple[int, int]:
    if len(body) < PICTURE_HEADER:
        raise _headless()
    if body[0] & ANIMATED:
        raise _animated()
    return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")


def _lossy(body: bytes) -> tuple[int, int]:
    if len(body) < PICTURE_HEADER or body[0] & 1 or body[3:6] != b"\x9d\x01\x2a":
        raise _headless()
    width, height = struct.unpack("<HH", body[6:10])
    return width & 0x3FFF, height & 0x3FFF


def _lossless(body: bytes) -> tuple[int, int]:
    if len(body) < 5 or body[0] != 0x2F:
        raise _headless()
    bits = int.from_bytes(body[1:5], "little")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


def _headless() -> Malformed:
    return Malformed(f"the WebP is damaged, its header makes no sense: {MEND}")


def _animated() -> Malformed:
    return Malformed("this WebP is animated: send a single picture")
