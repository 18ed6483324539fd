"""Result, limits and file reader shared by the structure checks of the three image formats."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

CHUNK_SIZE_BYTES = 64 * 1024
MAX_METADATA_BYTES = 16 * 2**20
"""Limit of the bytes outside the picture, which decoders keep in memory. Profiles, depth maps and provenance fit."""

SAVE_AGAIN = "save it again with an image editor"
SAVE_AS = "save it as PNG, JPEG or WebP"
SEND_AGAIN = "send it again"
SEND_SINGLE = "send a single picture"
SEND_SMALLER = "send a smaller picture"


InvalidImageCode = Literal["invalid_image", "payload_too_large"]


class InvalidImage(Exception):
    """The bytes are not an acceptable image; nothing of them was stored."""

    def __init__(
        self,
        problem: str,
        cure: str = SAVE_AGAIN,
        *,
        code: InvalidImageCode = "invalid_image",
        truncated: bool = False,
    ) -> None:
        """truncated: the end is missing, so fetching again may help."""
        super().__init__(f"{problem}: {cure}")
        self.problem = problem
        self.cure = cure
        self.code = code
        self.truncated = truncated


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """Facts that the structure check finds and the trial decode needs."""

    width: int
    height: int
    decode_bytes: int
    """Memory of the trial decode that grows with the picture."""
    scan_end: int | None = None
    """Offset behind the pixels of a JPEG with a single scan."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise `InvalidImage` for an empty or too large picture; called on the header, before anything is unpacked."""
    if not width or not height:
        raise InvalidImage("the image says it has no pixels")
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:g} million that are accepted"
        raise InvalidImage(f"{width} x {height} pixels are more than the {limit}", SEND_SMALLER)


class Source:
    """Reader of exact lengths; raises the truncation error when bytes are missing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)

    @property
    def position(self) -> int:
        return self._file.tell()

    @property
    def remaining(self) -> int:
        return self.size - self.position

    def read_exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise truncated()
        return data

    def skip(self, count: int) -> None:
        if count > self.remaining:
            raise truncated()
        self.seek(self.position + count)

    def seek(self, position: int) -> None:
        self._file.seek(position)

    def read_chunk(self) -> bytes:
        """Return the next chunk, empty at the end."""
        return self._file.read(CHUNK_SIZE_BYTES)

    def read_chunks(self, count: int) -> Iterator[bytes]:
        """Yield exactly `count` bytes in chunks."""
        while count:
            chunk = self.read_exactly(min(count, CHUNK_SIZE_BYTES))
            count -= len(chunk)
            yield chunk


class ParseBudget:
    """Limit of the parts and metadata bytes of one file: millions of empty parts would keep a decoder busy."""

    def __init__(self, max_parts: int) -> None:
        self._parts = max_parts
        self._bytes = MAX_METADATA_BYTES

    def count_part(self) -> None:
        self._parts -= 1
        if self._parts < 0:
            raise InvalidImage("the image consists of too many parts")

    def count_metadata(self, count: int) -> None:
        self.count_part()
        self._bytes -= count
        if self._bytes < 0:
            raise InvalidImage(f"the image carries more than {MAX_METADATA_BYTES // 2**20} MiB beside the picture")


def truncated() -> InvalidImage:
    return InvalidImage("the image ends too early, as if it was cut off", SEND_AGAIN, truncated=True)


def trailing_data() -> InvalidImage:
    return InvalidImage("there is something behind the end of the image")
