"""Parser of one HTTP/1.1 response, with limits, without I/O."""

from __future__ import annotations

from typing import Final

import httptools

from broker.net.pieces import ChunkCounter, TooManyPieces, TurnCounter

MAX_INTERIM_RESPONSES: Final = 16
"""1xx responses before a response."""
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 256
"""Headers of a response, and again trailers."""

FIRST_SLICE_BYTES: Final = 2 * 1024
"""Bytes parsed at once of a head, and of chunks as long as they are small: about 340 chunks of one byte."""
LARGE_SLICE_BYTES: Final = 16 * 1024
"""Bytes parsed at once after a slice of few chunks."""
MANY_CHUNKS: Final = 16
"""Chunks of a slice after which the next slice is a small one."""

_CHUNKED: Final = b"chunked"


class HttpFailure(Exception):
    """A response did not arrive as a whole. The message quotes none of it."""


class BadResponse(HttpFailure):
    """The response is cut short or is not HTTP."""

    def __init__(self) -> None:
        super().__init__("the response is cut short or is not HTTP")


class ConnectionBroken(HttpFailure):
    """The connection ended with an error."""

    def __init__(self) -> None:
        super().__init__("the connection broke")


class ResponseParser:
    """The response to one request, as far as it has arrived.

    `feed` parses what is safe to parse in one turn of the event loop; `has_more` is set while something is left.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """Names in lower case."""
        self.has_head = False
        self.is_complete = False
        self.keeps_alive = False
        """The connection can be used again: the response ends where the server says, and nothing follows it."""
        self.error: Exception | None = None
        self.received_bytes = 0
        """Bytes of the body."""
        self.buffered_bytes = 0
        """Bytes of the body that wait in the parser for `take`."""
        self._parts: list[bytes] = []
        self._rest = memoryview(b"")
        self._parser = httptools.HttpResponseParser(self)
        # What servers do and other clients accept; a response with two lengths ends its connection.
        self._parser.set_dangerous_leniencies(lenient_chunked_length=True, lenient_optional_cr_before_lf=True)
        self._interim = 0
        self._head_bytes = 0
        self._fed_head_bytes = 0
        self._is_chunked = False
        self._ends_with_connection = False
        self._chunks = ChunkCounter()
        self._turn = TurnCounter()
        self._slice_bytes = FIRST_SLICE_BYTES

    @property
    def has_ended(self) -> bool:
        return self.is_complete or self.error is not None

    @property
    def has_more(self) -> bool:
        """Return whether fed bytes are left for the next turn."""
        return bool(self._rest)

    def header_map(self) -> dict[str, str]:
        """Return the headers by lower-case name; several of one name are joined by commas."""
        found: dict[str, str] = {}
        for name, value in self.headers:
            key, text = name.decode("latin-1"), _decode_header(value)
            found[key] = f"{found[key]}, {text}" if key in found else text
        return found

    def first_header(self, name: bytes) -> str:
        """Return the first header of a lower-case name, or ""."""
        return next((_decode_header(value) for key, value in self.headers if key == name), "")

    def take(self) -> bytes:
        """Return the buffered part of the body."""
        parts, self._parts, self.buffered_bytes = self._parts, [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def feed(self, data: bytes) -> float:
        """Parse received bytes; return the seconds to wait before the next turn if `has_more`."""
        if self.has_head and not self._is_chunked and not self.has_ended:
            self._execute(data)  # one event
            return 0.0
        self._rest = memoryview(bytes(self._rest) + data if self._rest else data)
        return self.feed_rest()

    def feed_rest(self) -> float:
        """Parse what the last turn left over; see `feed`."""
        while self._rest and not self._turn.is_over:
            if self.has_ended:
                self.keeps_alive = False  # bytes beyond the response: the next one must not begin with them
                self._rest = memoryview(b"")
                return 0.0
            is_sliced = self._is_chunked or not self.has_head
            size = self._slice_bytes if is_sliced else len(self._rest)
            part, self._rest = self._rest[:size], self._rest[size:]
            chunks_before = self._chunks.count
            self._execute(part)
            is_dense = self._chunks.count - chunks_before > MANY_CHUNKS
            self._slice_bytes = LARGE_SLICE_BYTES if self._is_chunked and not is_dense else FIRST_SLICE_BYTES
            if not self.has_head:
                self._fed_head_bytes += len(part)
                if self._fed_head_bytes > MAX_HEAD_BYTES:
                    self.error = self.error or BadResponse()
        return self._turn.start_next() if self._rest else 0.0

    def feed_eof(self) -> None:
        """Note that the server has closed the connection."""
        self.keeps_alive = False
        if self.has_head and self._ends_with_connection:
            self.is_complete = True
        elif not self.is_complete:
            self.error = self.error or BadResponse()

    def fail(self, error: Exception) -> None:
        """Note that nothing more arrives."""
        self.keeps_alive = False
        if not self.is_complete:
            self.error = self.error or error

    def _execute(self, data: bytes | memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(BadResponse())

    # -- called by the parser; an exception ends it

    def on_message_begin(self) -> None:
        if self.has_head:
            self.keeps_alive = False
            raise BadResponse
        self.headers.clear()
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if not self.has_head:  # after it come trailers, which are ignored
            self.headers.append((name.lower(), value))
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            raise BadResponse

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            self._interim += 1
            if self._interim > MAX_INTERIM_RESPONSES:
                self.fail(TooManyPieces(f"more than {MAX_INTERIM_RESPONSES} interim responses (HTTP 1xx)"))
                raise BadResponse
            return
        encodings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        has_length = any(name == b"content-length" for name, _ in self.headers)
        if encodings not in ([], [_CHUNKED]):
            raise BadResponse
        self._is_chunked = bool(encodings)
        self._ends_with_connection = not (self._is_chunked or has_length)
        self.keeps_alive = self._parser.should_keep_alive() and not (self._is_chunked and has_length)
        self.has_head = True

    def on_chunk_header(self) -> None:
        self._count_chunk(0, is_start=True)

    def on_body(self, body: bytes) -> None:
        if self._is_chunked:
            self._turn.add(len(body))
            self._count_chunk(len(body), is_start=False)
        self._parts.append(body)
        self.buffered_bytes += len(body)
        self.received_bytes += len(body)

    def on_message_complete(self) -> None:
        self.is_complete = self.has_head

    def _count_chunk(self, size: int, *, is_start: bool) -> None:
        try:
            self._chunks.add(size, is_start=is_start)
        except TooManyPieces as error:
            self.fail(error)
            raise


def _decode_header(value: bytes) -> str:
    """Return the text of a header, whose encoding no standard names: UTF-8 as browsers read a Location, or Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
