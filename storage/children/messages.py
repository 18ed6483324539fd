"""Messages between a process and its child: each is its length in four bytes, then its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

LENGTH_BYTES: Final = 4
MAX_MESSAGE_BYTES: Final = 2**31


def frame(parts: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the parts of one message behind its length. Raises ValueError for two GiB and more."""
    size = sum(map(len, parts))
    if size >= MAX_MESSAGE_BYTES:
        raise ValueError("a message between processes must be smaller than two GiB")
    return size.to_bytes(LENGTH_BYTES, "big"), *parts


class MessageTooLarge(Exception):
    """The other process announces a message above the limit."""


class Unframer:
    """Takes bytes as they arrive, and finds the messages in them."""

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        """max_bytes: of one message."""
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def messages(self, data: bytes) -> Iterator[bytes]:
        """Yield the messages that are whole now. Raises `MessageTooLarge`."""
        self._buffer += data
        while len(self._buffer) >= LENGTH_BYTES:
            size = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if size > self._max_bytes:
                raise MessageTooLarge
            end = LENGTH_BYTES + size
            if len(self._buffer) < end:
                return
            message = bytes(memoryview(self._buffer)[LENGTH_BYTES:end])
            del self._buffer[:end]
            yield message
