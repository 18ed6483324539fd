"""JPEG from SOI to EOI: segments by their length, scans by a search for the next marker; and what may follow."""

from __future__ import annotations

import re
from dataclasses import dataclass

from uploads.shape import MEND, Allowance, Malformed, Shape, Source, check_size, cut_off, followed

MAGIC = b"\xff\xd8\xff"
SOI, EOI, SOS, DNL = 0xD8, 0xD9, 0xDA, 0xDC
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
MAX_SEGMENTS = 5_000
MAX_SCANS = 100
"""Each scan of a progressive JPEG costs a pass over the picture, however few bytes it has. Ten are usual."""


def walk(source: Source, max_pixels: int) -> Shape:
    """The first picture is the image; phones put more of them (previews, gain maps) behind it."""
    allowance = Allowance(MAX_SEGMENTS)
    shape = _picture(source, max_pixels, allowance)
    while _another(source):
        _picture(source, max_pixels, allowance)
    return shape


@dataclass
class _Frame:
    """buffered: a decoder can show it only after it has the coefficients of the whole picture in memory."""

    width: int
    height: int
    components: int
    buffered: bool
    scans: int = 0

    def shape(self) -> Shape:
        coefficients = self.width * self.height * self.components * 2
        return Shape(width=self.width, height=self.height, decode_bytes=coefficients if self.buffered else 0)


def _picture(source: Source, max_pixels: int, allowance: Allowance) -> Shape:
    source.skip(2)
    frame: _Frame | None = None
    while (marker := _marker(source, allowance)) != EOI:
        body = _segment(source, marker, allowance)
        if marker in FRAMES:
            frame = _frame(marker, body, frame, max_pixels)
        elif marker == SOS:
            _scan(source, body, frame)
    if frame is None or not frame.scans:
        raise Malformed(f"the JPEG has no picture in it: {MEND}")
    return frame.shape()


def _marker(source: Source, allowance: Allowance) -> int:
    first, code = source.take(2)
    while code == 0xFF:  # fill bytes
        allowance.part()
        (code,) = source.take(1)
    if first != 0xFF or code < 0xC0 or SOI - 8 <= code <= SOI:
        raise Malformed(f"the JPEG is damaged, something stands between its parts: {MEND}")
    return code


def _segment(source: Source, marker: int, allowance: Allowance) -> bytes:
    length = int.from_bytes(source.take(2), "big")
    if length < 2:
        raise Malformed(f"the JPEG is damaged, a part of it has no length: {MEND}")
    allowance.metadata(length)
    if marker in FRAMES or marker == SOS:
        return source.take(length - 2)
    source.skip(length - 2)
    return b""


def _frame(marker: int, body: bytes, earlier: _Frame | None, max_pixels: int) -> _Frame:
    if earlier is not None or len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise Malformed(f"the JPEG is damaged, its header makes no sense: {MEND}")
    if marker not in {BASELINE, EXTENDED, PROGRESSIVE} or body[0] != 8 or body[5] not in {1, 3, 4}:
        raise Malformed(f"this kind of JPEG (lossless, arithmetic or 12 bit) is shown by no browser: {MEND}")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    check_size(width, height, max_pixels)
    return _Frame(width=width, height=height, components=body[5], buffered=marker == PROGRESSIVE)


def _scan(source: Source, body: bytes, frame: _Frame | None) -> None:
    if frame is None or not body:
        raise Malformed(f"the parts of the JPEG are out of order: {MEND}")
    frame.scans += 1
    frame.buffered = frame.buffered or body[0] < frame.components
    if frame.scans > MAX_SCANS:
        raise Malformed(f"the JPEG consists of too many scans: {MEND}")
    _skip_to_marker(source)


def _skip_to_marker(source: Source) -> None:
    """Go to the marker that ends the compressed data, by searching piece after piece."""
    start = source.at
    tail = b""
    while piece := source.some():
        window = tail + piece
        if found := END_OF_SCAN.search(window):
            source.go(start + found.start())
            return
        tail = window[-1:]
        start += len(window) - len(tail)
    raise cut_off()


def _another(source: Source) -> bool:
    """Behind a picture: nothing, zeros as padding, or one more picture."""
    while piece := source.some():
        rest = piece.lstrip(b"\0")
        if rest:
            source.go(source.at - len(rest))
            break
    if not source.left:
        return False
    start = source.at
    head = source.take(min(len(MAGIC), source.left))
    source.go(start)
    if head != MAGIC:
        raise cut_off() if MAGIC.startswith(head) else followed()
    return True
