"""Result, limits and file reader shared by the structure checks of the three image formats."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

CHUNK_SIZE_BYTES = 64 * 1024
MAX_METADATA_BYTES = 16 * 2**20
"""Limit of the bytes outside the picture, which decoders keep in memory. Profiles, depth maps and provenance fit."""

SAVE_AGAIN = "save it again with an image editor"


class InvalidImage(Exception):
    """The bytes are not an acceptable image.

    message: one sentence that names the cure. truncated: the end is missing.
    """

    def __init__(self, message: str, *, truncated: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.truncated = truncated


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """Size in pixels and memory in bytes that a full decode takes."""

    width: int
    height: int
    decode_bytes: int


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise `InvalidImage` for an empty or too large picture; called on the header, before anything is unpacked."""
    if not width or not height:
        raise InvalidImage(f"the image says it has no pixels: {SAVE_AGAIN}")
    if width * height > max_pixels:
        raise InvalidImage(
            f"{width} x {height} pixels are more than the {max_pixels / 1e6:g} million that are accepted: "
            "send a smaller picture"
        )


class Source:
    """Reader of exact lengths; raises the truncation error when bytes are missing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0

    @property
    def remaining(self) -> int:
        return self.size - self.position

    def read_exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        self.position += len(data)
        if len(data) < count:
            raise truncated()
        return data

    def skip(self, count: int) -> None:
        if count > self.remaining:
            raise truncated()
        self.seek(self.position + count)

    def seek(self, position: int) -> None:
        self.position = self._file.seek(position)

    def read_chunk(self) -> bytes:
        """Return the next chunk, empty at the end."""
        data = self._file.read(CHUNK_SIZE_BYTES)
        self.position += len(data)
        return data

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
            raise InvalidImage(f"the image consists of too many parts: {SAVE_AGAIN}")

    def count_metadata(self, count: int) -> None:
        self.count_part()
        self._bytes -= count
        if self._bytes < 0:
            raise InvalidImage(
                f"the image carries more than {MAX_METADATA_BYTES // 2**20} MiB beside the picture: {SAVE_AGAIN}"
            )


def truncated() -> InvalidImage:
    return InvalidImage("the image ends too early, as if it was cut off: send it again", truncated=True)


def trailing_data() -> InvalidImage:
    return InvalidImage(f"there is something behind the end of the image: {SAVE_AGAIN}")
