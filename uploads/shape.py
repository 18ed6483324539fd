"""What a walk through an image file finds out, and the reader that notices where bytes are missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

PIECE = 64 * 1024
METADATA_BYTES = 16 * 2**20
"""Most bytes outside the picture itself: decoders keep them in memory. Profiles, depth maps and provenance fit."""

MEND = "save it again with an image editor"


class Malformed(Exception):
    """These bytes are not an image we take. message: one sentence naming the cure. truncated: the end is missing."""

    def __init__(self, message: str, *, truncated: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.truncated = truncated


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size in pixels, and the bytes of memory a full decode would take."""

    width: int
    height: int
    decode_bytes: int


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Called as soon as the header is read, before anything is unpacked."""
    if not width or not height:
        raise Malformed(f"the image says it has no pixels: {MEND}")
    if width * height > max_pixels:
        raise Malformed(
            f"{width} x {height} pixels are more than the {max_pixels / 1e6:g} million that are accepted: "
            "send a smaller picture"
        )


class Source:
    """A file read in exact steps. Missing bytes mean that it was cut off."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0

    @property
    def left(self) -> int:
        return self.size - self.at

    def take(self, count: int) -> bytes:
        data = self._file.read(count)
        self.at += len(data)
        if len(data) < count:
            raise cut_off()
        return data

    def skip(self, count: int) -> None:
        if count > self.left:
            raise cut_off()
        self.go(self.at + count)

    def go(self, position: int) -> None:
        self.at = self._file.seek(position)

    def some(self) -> bytes:
        """The next piece of whatever is left; empty at the end."""
        data = self._file.read(PIECE)
        self.at += len(data)
        return data

    def pieces(self, count: int) -> Iterator[bytes]:
        """Exactly `count` bytes in pieces."""
        while count:
            piece = self.take(min(count, PIECE))
            count -= len(piece)
            yield piece


class Allowance:
    """How many parts, and bytes of metadata, a file may have: millions of empty ones would keep a decoder busy."""

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._bytes = METADATA_BYTES

    def part(self) -> None:
        self._parts -= 1
        if self._parts < 0:
            raise Malformed(f"the image consists of too many parts: {MEND}")

    def metadata(self, count: int) -> None:
        self.part()
        self._bytes -= count
        if self._bytes < 0:
            raise Malformed(f"the image carries more than {METADATA_BYTES // 2**20} MiB beside the picture: {MEND}")


def cut_off() -> Malformed:
    return Malformed("the image ends too early, as if it was cut off: send it again", truncated=True)


def followed() -> Malformed:
    return Malformed(f"there is something behind the end of the image: {MEND}")
