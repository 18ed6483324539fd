"""Structure check of JPEG: segments by their length, scans by a search for the next marker, and trailing pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from uploads.structure import (
    SEND_AGAIN,
    ImageInfo,
    InvalidImage,
    ParseBudget,
    Source,
    check_size,
    trailing_data,
    truncated,
)

MAGIC = b"\xff\xd8\xff"
SOI, EOI, SOS, DNL = 0xD8, 0xD9, 0xDA, 0xDC
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BEHIND_PICTURE = {EOI, DNL, *range(0xE0, 0xF0), 0xFE}
"""Markers between the pixels and the end that a decoder skips; the trial decode ends with the pixels."""

END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
MAX_SEGMENTS = 5_000
MAX_SCANS = 100
"""Each scan of a progressive JPEG costs a pass over the picture, however few bytes it has. Ten are common."""
SCAN_HEADER_BYTES: Final = 6
"""At least, after its length."""
BLOCK_PIXELS: Final = 8
COEFFICIENTS_BYTES: Final = 2 * BLOCK_PIXELS**2
"""Memory of the coefficients of one block."""
MAX_SAMPLING: Final = 4
OUT_OF_ORDER: Final = "the parts of the JPEG are out of order"


def validate_structure(source: Source, max_pixels: int) -> ImageInfo:
    """Check every picture in the file and return the first; phones append previews and gain maps."""
    budget = ParseBudget(MAX_SEGMENTS)
    info = _read_picture(source, max_pixels, budget)
    while _has_next_picture(source):
        _read_picture(source, max_pixels, budget)
    return info


@dataclass
class _Frame:
    """Header of one picture."""

    width: int
    height: int
    components: int
    blocks: int
    """Blocks of 8 x 8 samples, of all components."""
    buffered: bool
    """A decoder needs the coefficients of the whole picture in memory at once."""
    scans: int = 0
    first_scan_bytes: int = 0
    """Of the scans that have a code for every block: not the later ones of a progressive JPEG."""
    scan_end: int = 0
    """Offset behind the latest scan."""

    @property
    def is_complete(self) -> bool:
        """Return whether all pixels were in the scan before."""
        return self.scans > 0 and not self.buffered

    def image_info(self) -> ImageInfo:
        if self.first_scan_bytes * 8 < self.blocks:  # a code has at least one bit
            raise InvalidImage("the JPEG has fewer pixels than its header says", SEND_AGAIN)
        return ImageInfo(
            width=self.width,
            height=self.height,
            decode_bytes=self.blocks * COEFFICIENTS_BYTES if self.buffered else 0,
            scan_end=self.scan_end if self.is_complete else None,
        )


def _read_picture(source: Source, max_pixels: int, budget: ParseBudget) -> ImageInfo:
    source.skip(2)
    frame: _Frame | None = None
    while (marker := _read_marker(source, budget)) != EOI:
        if frame is not None and frame.is_complete and marker not in BEHIND_PICTURE:
            raise InvalidImage(OUT_OF_ORDER)
        body = _read_segment(source, marker, budget)
        if marker in FRAMES:
            frame = _parse_frame(marker, body, frame, max_pixels)
        elif marker == SOS:
            _skip_scan(source, body, frame)
    if frame is None or not frame.scans:
        raise InvalidImage("the JPEG has no picture in it")
    return frame.image_info()


def _read_marker(source: Source, budget: ParseBudget) -> int:
    first, code = source.read_exactly(2)
    while code == 0xFF:  # fill bytes
        budget.count_part()
        (code,) = source.read_exactly(1)
    if first != 0xFF or code < 0xC0 or SOI - 8 <= code <= SOI:
        raise InvalidImage("the JPEG is damaged, there are stray bytes between its parts")
    return code


def _read_segment(source: Source, marker: int, budget: ParseBudget) -> bytes:
    length = int.from_bytes(source.read_exactly(2), "big")
    if length < 2:
        raise InvalidImage("the JPEG is damaged, a part of it has no length")
    budget.count_metadata(length)
    if marker in FRAMES or marker == SOS:
        return source.read_exactly(length - 2)
    source.skip(length - 2)
    return b""


def _parse_frame(marker: int, body: bytes, earlier: _Frame | None, max_pixels: int) -> _Frame:
    if earlier is not None or len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise InvalidImage("the JPEG is damaged, its header makes no sense")
    if marker not in {BASELINE, EXTENDED, PROGRESSIVE} or body[0] != 8 or body[5] not in {1, 3, 4}:
        raise InvalidImage("this kind of JPEG (lossless, arithmetic or 12 bit) is not shown by browsers")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    check_size(width, height, max_pixels)
    blocks = _count_blocks(width, height, body[7::3])
    return _Frame(width=width, height=height, components=body[5], blocks=blocks, buffered=marker == PROGRESSIVE)


def _count_blocks(width: int, height: int, samplings: bytes) -> int:
    """Return the blocks of a picture. samplings: horizontal and vertical factor of each component, a byte for both."""
    factors = [divmod(sampling, 16) for sampling in samplings]
    if not all(1 <= factor <= MAX_SAMPLING for pair in factors for factor in pair):
        raise InvalidImage("the JPEG is damaged, its header makes no sense")
    columns, rows = (BLOCK_PIXELS * max(direction) for direction in zip(*factors, strict=True))
    return sum(-(-width * across // columns) * -(-height * down // rows) for across, down in factors)


def _skip_scan(source: Source, body: bytes, frame: _Frame | None) -> None:
    """Move to the marker that ends the compressed data."""
    if frame is None or len(body) < SCAN_HEADER_BYTES:
        raise InvalidImage(OUT_OF_ORDER)
    first_coefficient, refined_bits = body[-3], body[-1] >> 4
    frame.scans += 1
    frame.buffered = frame.buffered or body[0] < frame.components
    if frame.scans > MAX_SCANS:
        raise InvalidImage("the JPEG consists of too many scans")
    begin = start = source.position
    tail = b""
    while chunk := source.read_chunk():
        window = tail + chunk
        if found := END_OF_SCAN.search(window):
            frame.scan_end = start + found.start()
            if not first_coefficient and not refined_bits:
                frame.first_scan_bytes += frame.scan_end - begin
            source.seek(frame.scan_end)
            return
        tail = window[-1:]
        start += len(window) - len(tail)
    raise truncated()


def _has_next_picture(source: Source) -> bool:
    """Return whether one more picture follows; zeros as padding are skipped, other bytes are an error."""
    while chunk := source.read_chunk():
        rest = chunk.lstrip(b"\0")
        if rest:
            source.seek(source.position - len(rest))
            break
    if not source.remaining:
        return False
    start = source.position
    head = source.read_exactly(min(len(MAGIC), source.remaining))
    source.seek(start)
    if head != MAGIC:
        raise truncated() if MAGIC.startswith(head) else trailing_data()
    return True
