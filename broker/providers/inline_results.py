"""JSON responses that contain images: the images go to the blob store while they arrive, the rest becomes a value.

A 4K image is tens of megabytes of base64 inside one string. Only a piece of it is in memory at a time: the string is
copied into the sink, and its place in the document is taken by the output that the sink returned.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from broker.errors import ProviderError, SinkError
from broker.net.documents import parse_off_loop
from broker.net.pieces import TurnCounter
from broker.providers.base import ResultSink
from webhooks.strict_json import MAX_VALUES, read_json

MAX_DOCUMENT_BYTES: Final = 8 * 2**20
"""Limit of a document without its images; thought signatures are part of it."""
MAX_DEPTH: Final = 64
MAX_RESULTS: Final = 32
"""Images of one response, those of the model's thoughts included."""
PIECE_BYTES: Final = 256 * 1024
"""Base64 that is decoded at once, in a thread."""
_LOOK_AHEAD: Final = 128
"""Bytes that are needed to recognise the beginning of an image."""

_DATA_URI: Final = re.compile(rb"data:image\\?/[A-Za-z0-9.+-]{1,32};base64,")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/=_-]*+(?:(?:\\/|\\u00(?:3[dD]|2[bBfF])|\\[nr])[A-Za-z0-9+/=_-]*+)*+")
_ESCAPES: Final = re.compile(rb"\\(?:/|u003[dD]|u002[bBfF]|[nr])")
"""Escapes within base64: some encoders escape `/`, `=` and `+`, others break the lines."""
_UNESCAPED: Final = {b"u003d": b"=", b"u002b": b"+", b"u002f": b"/", b"/": b"/", b"n": b"", b"r": b""}
_LONGEST_ESCAPE: Final = 6
_URL_ALPHABET: Final = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, kw_only=True)
class InlineDocument:
    """A response with an output of the sink in place of each image."""

    body: Any
    outputs: frozenset[str]
    """What the sink returned. An equal text that is not among them came from the other side, and proves nothing."""


async def read_inline_results(
    chunks: AsyncIterator[bytes], sink: ResultSink, *, is_image: Callable[[str, str], bool]
) -> InlineDocument:
    """Read a JSON document whose images are base64, each as a string of its own or as a `data:` URI within a text.

    is_image: (name of the enclosing object, name of the value) → True if that value is an image. Raises
    `ProviderError` for a document that is cut short, broken or too large, `SinkError` for an image that is not base64
    or cannot be stored.
    """
    reader = _Reader(chunks=chunks, sink=sink, is_image=is_image)
    await reader.read_document()
    try:
        body = await parse_off_loop(len(reader.document), reader.parse_document)
    except ValueError:
        raise ProviderError(f"a response of {len(reader.document)} bytes, images aside, is not sound JSON") from None
    return InlineDocument(body=body, outputs=frozenset(reader.outputs))


@dataclass(kw_only=True)
class _Reader:
    """A scanner that knows strings, names and nesting, which is enough to find images; `read_json` checks the rest."""

    chunks: AsyncIterator[bytes]
    sink: ResultSink
    is_image: Callable[[str, str], bool]
    document: bytearray = field(default_factory=bytearray)
    outputs: list[str] = field(default_factory=list)
    _buffer: bytearray = field(default_factory=bytearray)
    _is_ended: bool = False
    _names: list[str] = field(default_factory=list)
    """Of the open objects and lists, outermost first."""

    async def read_document(self) -> None:
        """Copy the document to its end, with an output of the sink in place of each image."""
        string, values, turn = "", 0, TurnCounter()
        while (gap := await self._read_gap()) is not None:
            values += sum(gap.count(sign) for sign in (b",", b"[", b"{"))
            if values > MAX_VALUES:
                raise ProviderError(f"a response has more than {MAX_VALUES} values")
            self._track_nesting(gap, string)
            turn.add(len(gap))
            if turn.is_over:
                await asyncio.sleep(turn.start_next())
            enclosing = self._names[-1] if self._names else ""
            if gap.strip() == b":" and self.is_image(enclosing, string) and await self._starts_like_base64():
                await self._read_image()
                string = ""
            else:
                string = await self._read_text()

    def parse_document(self) -> Any:
        """Return the document as a value. Raises ValueError."""
        return read_json(bytes(self.document), max_depth=MAX_DEPTH, repair_surrogates=True, allow_duplicate_names=True)

    def _track_nesting(self, gap: bytes, name: str) -> None:
        """Follow the brackets between two strings. name: the string before them."""
        is_named = False
        for char in gap:
            if char in b"{[":
                # the objects in a list go by the name of the list
                self._names.append(name if is_named else "".join(self._names[-1:]))
                if len(self._names) > MAX_DEPTH:
                    raise ProviderError("a response is nested too deeply")
            elif char in b"}]" and self._names:
                self._names.pop()
            is_named = char == ord(":") or (is_named and char in b" \t\r\n")

    async def _read_gap(self) -> bytes | None:
        """Copy everything up to the next string; return it, or None at the end of the document."""
        begun = len(self.document)
        while (end := self._buffer.find(b'"')) < 0:
            self._copy(len(self._buffer))
            if not await self._receive():
                return None
        self._copy(end + 1)
        return bytes(self.document[begun:-1])

    async def _starts_like_base64(self) -> bool:
        """Return True unless the value is empty or a link; skip the beginning of a `data:` URI."""
        await self._fill(_LOOK_AHEAD)
        if found := _DATA_URI.match(self._buffer):
            del self._buffer[: found.end()]
        return not self._buffer.startswith((b'"', b"http:", b"https:"))

    async def _read_image(self) -> None:
        await self._store_image()
        if not self._buffer.startswith(b'"'):
            raise SinkError("invalid_result", "the image in the response is not base64")
        self._copy(1)

    async def _read_text(self) -> str:
        """Copy a string, its `data:` URIs as outputs of the sink; return it if it is short enough to be a name."""
        begun = len(self.document)
        while True:
            await self._fill(_LOOK_AHEAD)
            end = _end_of_string(self._buffer)
            found = _DATA_URI.search(self._buffer, 0, len(self._buffer) if end is None else end)
            if found:
                self._copy(found.start())
                del self._buffer[: found.end() - found.start()]
                await self._store_image()
            elif end is not None:
                self._copy(end + 1)
                return self.document[begun:-1].decode("utf-8", "replace") if len(self.document) - begun < 64 else ""
            elif self._is_ended:
                raise ProviderError("a response ended within a string")
            else:
                self._copy(_safe_length(self._buffer))
                await self._receive()

    async def _store_image(self) -> None:
        """Store the base64 at the beginning of the buffer; leave the output of the sink in its place."""
        if len(self.outputs) == MAX_RESULTS:
            raise ProviderError(f"a response has more than {MAX_RESULTS} images")
        async with aclosing(self._decoded_pieces()) as pieces:
            output = await self.sink.store(pieces)
        self.outputs.append(output)
        self.document += output.encode()

    async def _decoded_pieces(self) -> AsyncGenerator[bytes]:
        rest, is_last = b"", False
        while not is_last:
            await self._fill(PIECE_BYTES)
            piece = await asyncio.to_thread(_decode_piece, rest, bytes(self._buffer), is_ended=self._is_ended)
            del self._buffer[: piece.length]
            rest, is_last = piece.rest, piece.is_last
            yield piece.data

    def _copy(self, length: int) -> None:
        self.document += self._buffer[:length]
        del self._buffer[:length]
        if len(self.document) > MAX_DOCUMENT_BYTES:
            raise ProviderError(f"a response is longer than {MAX_DOCUMENT_BYTES} bytes, images aside")

    async def _fill(self, length: int) -> None:
        while len(self._buffer) < length and await self._receive():
            pass

    async def _receive(self) -> bool:
        """Receive one more chunk; return False at the end."""
        chunk = await anext(self.chunks, None)
        if chunk is None:
            self._is_ended = True
            return False
        self._buffer += chunk
        return True


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Decoded base64."""

    data: bytes
    length: int
    """Bytes of the buffer that it took."""
    rest: bytes
    """Characters with which the next piece begins: four of them are decoded together."""
    is_last: bool


def _decode_piece(rest: bytes, buffer: bytes, *, is_ended: bool) -> _Piece:
    """Decode the base64, of either alphabet, at the beginning of a buffer."""
    found = _BASE64.match(buffer)
    length = found.end() if found else 0
    is_escape = buffer[length : length + 1] in {b"", b"\\"} and length >= len(buffer) - _LONGEST_ESCAPE
    is_last = is_ended or not is_escape
    if is_ended and b'"' not in buffer[length:]:
        raise ProviderError("a response ended within an image")
    plain = rest + _ESCAPES.sub(lambda found: _UNESCAPED[found[0][1:].lower()], buffer[:length])
    whole = len(plain) if is_last else len(plain) // 4 * 4
    padding = b"=" * (-len(plain) % 4) if is_last else b""  # some leave it out
    try:
        data = base64.b64decode(plain[:whole].translate(_URL_ALPHABET) + padding, validate=True)
    except ValueError:
        raise SinkError("invalid_result", "the image in the response is not base64") from None
    return _Piece(data=data, length=length, rest=plain[whole:], is_last=is_last)


def _end_of_string(buffer: bytearray) -> int | None:
    """Return the position of the first quote that is not escaped."""
    end = buffer.find(b'"')
    while end > 0 and _trailing_backslashes(buffer, end) % 2:
        end = buffer.find(b'"', end + 1)
    return None if end < 0 else end


def _safe_length(buffer: bytearray) -> int:
    """Return how much of a string can be copied: neither half an escape nor the beginning of a `data:` URI."""
    length = max(0, len(buffer) - _LOOK_AHEAD)
    return length - _trailing_backslashes(buffer, length) % 2


def _trailing_backslashes(buffer: bytearray, end: int) -> int:
    begin = end
    while begin and buffer[begin - 1] == ord("\\"):
        begin -= 1
    return end - begin
