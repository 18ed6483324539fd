"""Parser of one HTTP/1.1 response, with limits, without I/O."""

from __future__ import annotations

from typing import Final, cast

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
_NOTHING: Final = memoryview(b"")


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
        self._rest = _NOTHING
        # A cycle until the end of the response.
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        # What servers do and other clients accept; a response with two lengths ends its connection.
        self._parser.set_dangerous_leniencies(lenient_chunked_length=True, lenient_optional_cr_before_lf=True)
        self._interim = 0
        self._head_bytes = 0
        self._fed_head_bytes = 0
        self._is_chunked = False
        self._left_bytes = 0
        """Bytes that are missing of a body of known length."""
        self._ends_with_connection = False
        self._chunks = ChunkCounter()
        self._turn = TurnCounter()
        self._slice_bytes = FIRST_SLICE_BYTES

    @property
    def has_ended(self) -> bool:
        return self.is_complete or self.error is not None

    @property
    def is_read(self) -> bool:
        """Return whether the response has arrived as a whole, and none of it is left for `take`."""
        return self.is_complete and not self.buffered_bytes

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

    def take(self, at_least: int = 1) -> bytes:
        """Return a buffered part of the body: at least so many bytes where they are there, and hardly more.

        Copies of more than half a megabyte cost twice as much: the allocator asks the system for each.
        """
        count = size = 0
        for part in self._parts:
            count, size = count + 1, size + len(part)
            if size >= at_least:
                break
        parts = self._parts[:count]
        del self._parts[:count]
        self.buffered_bytes -= size
        return parts[0] if count == 1 else b"".join(parts)

    def feed(self, data: bytes) -> float:
        """Parse received bytes; return the seconds to wait before the next turn if `has_more`."""
        if self._left_bytes and not self._rest:
            self._add_body(data)
            return 0.0
        self._rest = memoryview(bytes(self._rest) + data if self._rest else data)
        return self.feed_rest()

    def feed_rest(self) -> float:
        """Parse what the last turn left over; see `feed`."""
        while self._rest and not self._turn.is_over:
            if self._left_bytes:
                data, self._rest = bytes(self._rest), _NOTHING
                self._add_body(data)
                return 0.0
            if self._parser is None or self.has_ended:
                self.keeps_alive = False  # bytes beyond the response: the next one must not begin with them
                self._rest = _NOTHING
                return 0.0
            is_sliced = self._is_chunked or not self.has_head
            size = self._slice_bytes if is_sliced else len(self._rest)
            part, self._rest = self._rest[:size], self._rest[size:] or _NOTHING  # an empty slice holds all it is of
            chunks_before = self._chunks.count
            self._execute(self._parser, part)
            is_dense = self._chunks.count - chunks_before > MANY_CHUNKS
            self._slice_bytes = LARGE_SLICE_BYTES if self._is_chunked and not is_dense else FIRST_SLICE_BYTES
            if not self.has_head:
                self._fed_head_bytes += len(part)
                if self._fed_head_bytes > MAX_HEAD_BYTES:
                    self.fail(BadResponse())
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

    def _add_body(self, data: bytes) -> None:
        """Add bytes of a body of known length, which the parser would only copy."""
        if len(data) > self._left_bytes:
            data, self.keeps_alive = data[: self._left_bytes], False
        self.on_body(data)
        self.is_complete = not self._left_bytes

    def _execute(self, parser: httptools.HttpResponseParser, data: memoryview) -> None:
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(BadResponse())
        if self._left_bytes or self.has_ended:
            self._parser = None

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
        parser = cast(httptools.HttpResponseParser, self._parser)
        self.status = parser.get_status_code()
        if 100 <= self.status < 200:
            self._interim += 1
            if self._interim > MAX_INTERIM_RESPONSES:
                self.fail(TooManyPieces(f"more than {MAX_INTERIM_RESPONSES} interim responses (HTTP 1xx)"))
                raise BadResponse
            return
        encodings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        length = next((value for name, value in self.headers if name == b"content-length"), None)
        if encodings not in ([], [_CHUNKED]):
            raise BadResponse
        self._is_chunked = bool(encodings)
        self._left_bytes = int(length or 0) if not encodings else 0
        self._ends_with_connection = not encodings and length is None
        self.keeps_alive = parser.should_keep_alive() and (not encodings or length is None)
        self.has_head = True

    def on_chunk_header(self) -> None:
        self._count_chunk(0, is_start=True)

    def on_body(self, body: bytes) -> None:
        if self._is_chunked:
            self._turn.add(len(body))
            self._count_chunk(len(body), is_start=False)
        else:
            self._left_bytes = max(0, self._left_bytes - len(body))
        self._parts.append(body)
        self.buffered_bytes += len(body)
        self.received_bytes += len(body)

    def on_message_complete(self) -> None:
        self.is_complete = self.has_head
        if self.has_head:
            self._left_bytes = 0

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
