"""Structure check of PNG: order and checksum of every chunk, and pixel data that inflates to the right length."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from uploads.structure import (
    SEND_AGAIN,
    SEND_SINGLE,
    ImageInfo,
    InvalidImage,
    ParseBudget,
    Source,
    check_size,
    trailing_data,
)

MAGIC = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PALETTE = 3
BEFORE_PIXELS = set(b"PLTE tRNS bKGD hIST iCCP sRGB gAMA cHRM sBIT sPLT pHYs cICP mDCV cLLI".split())
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
WHOLE = ((0, 0, 1, 1),)
MAX_CHUNKS = 100_000
MAX_LENGTH = 2**31 - 1
INFLATED_CHUNK_BYTES = 256 * 1024
MAX_TEXT_BYTES = 2**20
"""Limit of one compressed text when inflated; Pillow's, and it fails on more."""
COMPRESSED_TEXT = {
    b"zTXt": re.compile(rb"[^\0]*\0(?P<method>.)(?P<text>.*)", re.DOTALL),
    b"iTXt": re.compile(rb"[^\0]*\0[^\0](?P<method>.)[^\0]*\0[^\0]*\0(?P<text>.*)", re.DOTALL),
}


def validate_structure(source: Source, max_pixels: int) -> ImageInfo:
    """Check a whole file and return its size; raises `InvalidImage`."""
    source.skip(len(MAGIC))
    header = _Header(source, max_pixels)
    budget = ParseBudget(MAX_CHUNKS)
    seen: set[bytes] = set()
    kind = b"IHDR"
    while kind != b"IEND":
        before = kind
        length, kind = struct.unpack(">I4s", source.read_exactly(8))
        _check_chunk(kind, length)
        _check_place(kind, before, seen, header)
        if kind == b"IDAT":
            budget.count_part()
        else:
            budget.count_metadata(length)
        body = _read_body(source, kind, length)
        if pattern := COMPRESSED_TEXT.get(kind):
            _check_text(pattern.fullmatch(b"".join(body)), budget)
        for data in body:
            if kind == b"IDAT":
                header.pixels.feed(data)
        seen.add(kind)
    header.pixels.finish()
    if source.remaining:
        raise trailing_data()
    return ImageInfo(width=header.width, height=header.height, decode_bytes=0)


class _Header:
    def __init__(self, source: Source, max_pixels: int) -> None:
        length, kind = struct.unpack(">I4s", source.read_exactly(8))
        if (length, kind) != (13, b"IHDR"):
            raise InvalidImage("the PNG does not begin with its header")
        body = b"".join(_read_body(source, kind, length))
        self.width, self.height, depth, self.colour, method, filters, interlace = struct.unpack(">IIBBBBB", body)
        if depth not in DEPTHS.get(self.colour, ()) or method or filters or interlace > 1:
            raise InvalidImage("the PNG has a header that programs do not understand")
        check_size(self.width, self.height, max_pixels)
        passes = ADAM7 if interlace else WHOLE
        self.pixels = _Pixels(list(_pass_rows(self.width, self.height, depth * CHANNELS[self.colour], passes)))


def _pass_rows(
    width: int, height: int, bits: int, passes: tuple[tuple[int, int, int, int], ...]
) -> Iterator[tuple[int, int]]:
    """Yield the number of rows and the bytes per row, filter byte included, of each pass."""
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            yield rows, 1 + -(-columns * bits // 8)


def _check_chunk(kind: bytes, length: int) -> None:
    if not (kind.isascii() and kind.isalpha()) or length > MAX_LENGTH:
        raise InvalidImage("the PNG is damaged, a part of it makes no sense")
    if kind in {b"acTL", b"fcTL", b"fdAT"}:
        raise InvalidImage("this PNG is animated", SEND_SINGLE)
    if kind[0:1].isupper() and kind not in {b"PLTE", b"IDAT", b"IEND"}:
        raise InvalidImage(f"the PNG needs a feature ({kind.decode()}) that browsers do not have")
    if kind == b"IEND" and length:
        raise InvalidImage("the PNG has bytes in its end marker")


def _check_place(kind: bytes, before: bytes, seen: set[bytes], header: _Header) -> None:
    late = b"IDAT" in seen and (kind in BEFORE_PIXELS or (kind == b"IDAT" and before != b"IDAT"))
    early = kind == b"IDAT" and header.colour == PALETTE and b"PLTE" not in seen
    if late or early:
        raise InvalidImage("the parts of the PNG are out of order")


def _read_body(source: Source, kind: bytes, length: int) -> Iterator[bytes]:
    """Yield the body of a chunk in pieces; raises `InvalidImage` at the end if the checksum is wrong."""
    crc = zlib.crc32(kind)
    for data in source.read_chunks(length):
        crc = zlib.crc32(data, crc)
        yield data
    if crc != int.from_bytes(source.read_exactly(4), "big"):
        raise InvalidImage(f"the PNG is damaged, the checksum of {kind.decode()} is wrong", SEND_AGAIN)


def _check_text(match: re.Match[bytes] | None, budget: ParseBudget) -> None:
    """Count a compressed text as metadata: decoders inflate it, also behind the pixels. A damaged one is ignored."""
    if match is None:
        return
    if match["method"] != b"\0":
        raise InvalidImage("the PNG has a text that programs cannot unpack")
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(match["text"], MAX_TEXT_BYTES)
    except zlib.error:
        return
    if inflater.unconsumed_tail:
        raise InvalidImage(f"the PNG has a text that unpacks to more than {MAX_TEXT_BYTES // 2**20} MiB")
    budget.count_metadata(len(text))


class _Pixels:
    """Checker of inflated pixel data: length, checksum and filter types. Nothing is kept."""

    def __init__(self, passes: list[tuple[int, int]]) -> None:
        self._zlib = zlib.decompressobj()
        self._passes = passes
        self._row_at = 0  # offset of the next row from the next byte

    def feed(self, data: bytes) -> None:
        while data:
            self._check_filters(_try_inflate(partial(self._zlib.decompress, data, INFLATED_CHUNK_BYTES)))
            if self._zlib.unused_data:
                raise InvalidImage("the PNG has bytes after its pixels")
            data = self._zlib.unconsumed_tail

    def _check_filters(self, data: bytes) -> None:
        while self._row_at < len(data):
            if not self._passes:
                raise InvalidImage("the PNG has more pixels than its header says")
            rows, stride = self._passes[0]
            filters = data[self._row_at :: stride][:rows]
            if max(filters) > 4:
                raise InvalidImage("the PNG is damaged, a row of it makes no sense", SEND_AGAIN)
            self._row_at += len(filters) * stride
            self._passes[0] = (rows - len(filters), stride)
            if rows == len(filters):
                self._passes.pop(0)
        self._row_at -= len(data)

    def finish(self) -> None:
        """Check that the stream has ended with the last row."""
        if not self._zlib.eof:
            self._check_filters(_try_inflate(self._zlib.flush))
        if self._passes or self._row_at or not self._zlib.eof:
            raise InvalidImage("the PNG has fewer pixels than its header says", SEND_AGAIN)


def _try_inflate(work: Callable[[], bytes]) -> bytes:
    try:
        return work()
    except zlib.error as error:
        raise InvalidImage("the PNG is damaged, its pixels do not unpack", SEND_AGAIN) from error
