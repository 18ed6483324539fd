"""Limits on HTTP messages that arrive in tiny pieces.

A parser spends as much time on a chunk of one byte as on one of 64 KiB, and all of it on the event loop. The limits
hold for requests and responses alike, and for every parser.
"""

from __future__ import annotations

from typing import Final

MAX_SMALL_CHUNKS: Final = 4096
"""Chunks that one body may have, unless they average at least `MIN_CHUNK_BYTES`."""
MIN_CHUNK_BYTES: Final = 64
EVENTS_PER_TURN: Final = 256
"""Parser events of one connection before other tasks run again: a millisecond or two."""
SMALL_TURN_BYTES: Final = EVENTS_PER_TURN * 1024
PAUSE_SECONDS: Final = 0.02
"""Pause of a connection after a turn with fewer bytes: a few such connections must not use up the processor."""


class TooManyPieces(Exception):
    """The peer sends more tiny pieces than allowed; the message names the limit."""


class ChunkCounter:
    """Counts the chunks of one body."""

    def __init__(self) -> None:
        self.count = 0
        self._bytes = 0

    def add(self, size: int, *, is_start: bool = True) -> None:
        """Count a chunk, or a later part of one. size: bytes. Raises `TooManyPieces`."""
        self.count += is_start
        self._bytes += size
        ended = self.count - 1  # the rest of the last one may be on its way
        if self.count > MAX_SMALL_CHUNKS and self._bytes < ended * MIN_CHUNK_BYTES:
            raise TooManyPieces(
                f"more than {MAX_SMALL_CHUNKS:,} chunks of less than {MIN_CHUNK_BYTES} bytes on average"
            )


class TurnCounter:
    """Counts the parser events of one message between two pauses of its connection."""

    def __init__(self) -> None:
        self._events = 0
        self._bytes = 0

    def add(self, size: int) -> None:
        """Count an event. size: bytes of body."""
        self._events += 1
        self._bytes += size

    @property
    def is_over(self) -> bool:
        return self._events >= EVENTS_PER_TURN

    def start_next(self) -> float:
        """Return the seconds until the next turn; 0 for one that follows as soon as other tasks have run."""
        seconds = 0.0 if self._bytes >= SMALL_TURN_BYTES else PAUSE_SECONDS
        self._events = self._bytes = 0
        return seconds
