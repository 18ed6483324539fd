"""Server-sent events out of a stream of bytes, as browsers read them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Final

MOST_BYTES: Final = 8 * 2**20
"""Of one event; a task is a few kilobytes."""


class TooLong(ValueError):
    """An event without an end."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """id: what to send as Last-Event-ID after it; None where the stream never gave one."""

    id: str | None
    data: str


@dataclass
class _Parser:
    """Lines into events. An event that breaks off in the middle is none."""

    id: str | None = None
    _rest: bytes = b""
    _data: list[str] = field(default_factory=list)
    _held: int = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        *lines, self._rest = _cut(self._rest + chunk)
        for line in lines:
            event = self._line(line.decode("utf-8", "replace"))
            if event is not None:
                yield event
        if self._held + len(self._rest) > MOST_BYTES:
            raise TooLong(f"an event of more than {MOST_BYTES} bytes")

    def _line(self, line: str) -> Event | None:
        if not line:
            data, self._data, self._held = self._data, [], 0
            return Event(id=self.id, data="\n".join(data)) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._held += len(line)
        elif name == "id" and "\0" not in value:
            self.id = value
        return None


def _cut(text: bytes) -> list[bytes]:
    """Whole lines, and what may go on in the next chunk. A line ends with CR, LF or both."""
    whole = text.splitlines(keepends=True)
    open_end = whole.pop() if whole and not whole[-1].endswith(b"\n") else b""
    return [*(line.rstrip(b"\r\n") for line in whole), open_end]


async def read(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Event]:
    """The events of a stream. Raises `TooLong`."""
    parser = _Parser()
    async for chunk in chunks:
        for event in parser.feed(chunk):
            yield event
