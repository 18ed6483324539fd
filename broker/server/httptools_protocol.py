"""Connections that httptools (llhttp) parses, as strictly as h11 would, for a quarter of its time.

llhttp reads megabytes of headers, a request without a Host, and everything that has arrived, however many requests that
is. So its input is cut up: first the whole head of one request, once its size is known to be allowed, then its body, a
bounded number of events per event-loop turn. A chunked body is cut where its chunks end; what they contain is not
searched. The next request is not parsed before this one is answered.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Any, Final
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.api.http.connection import WHOLE_RESPONSE
from broker.net.pieces import ChunkCounter, TooManyPieces, TurnCounter
from broker.server.deadlines import Phase
from broker.server.httptools_cycle import ResponseCycle
from broker.server.protocol import CLOSE_HEADER, MAX_HEAD_BYTES, MAX_HEADER_LINES, GuardedProtocol

_COPIED_BYTES: Final = 4096
"""Up to so many are handed to the parser as a copy, which takes less time than a view."""
_LINE_END: Final = b"\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_VERSIONS: Final = {"1.0", "1.1"}
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")


class _Part(Enum):
    """The part of a request that is received next."""

    HEAD = auto()
    SIZED_BODY = auto()
    CHUNKED_BODY = auto()
    NONE = auto()
    """The request is complete, and not yet answered."""


class _MalformedRequest(Exception):
    """The client broke a rule that llhttp does not check."""


class GuardedHttpTools(GuardedProtocol, HttpToolsProtocol):
    """One client connection, parsed by httptools."""

    cycle: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extensions[WHOLE_RESPONSE] = {}
        del self.pipeline  # a deque of uvicorn's, most of a kibibyte; here pipelined requests wait in the buffer
        self._buffer = b""
        """Received bytes; those before `_parsed` have been parsed."""
        self._parsed = 0
        self._searched = 0
        """Bytes of an incomplete head, which are not searched for its end again when more arrive."""
        self._part = _Part.HEAD
        self._body_left = 0
        """Bytes of a sized body that are still to come."""
        self._is_complete = False
        self._is_chunk_start = False
        self._chunk_left = 0
        """Bytes of the current chunk, and of its line end, that are still to come; 0 where a line is to come."""
        self._line_start = 0
        self._idle_bytes = 0
        """Bytes of a chunked body since the last that were content."""
        self._chunks = ChunkCounter()
        self._turn = TurnCounter()
        self._header_lines = 0
        self._may_send_ready = False
        """At most once for the bytes that arrived together: of many pipelined requests each gets a turn of its own."""
        self._error: Exception | None = None
        self._method = b""
        self._version = ""
        self._keeps_alive = False

    # -- bytes

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.is_lingering:
            return
        self._may_send_ready = True
        if self._parsed < len(self._buffer):
            data = self._buffer[self._parsed :] + data
        self._buffer, self._searched, self._parsed = data, max(0, self._searched - self._parsed), 0
        self.parse_more()
        self.update_phase()

    def parse_more(self) -> None:
        """Parse the received bytes up to the end of the request, or of the turn."""
        if self.flow.is_held:
            return
        try:
            while self._parsed < len(self._buffer):
                part = self._part
                if part is _Part.HEAD:
                    may_go_on = self._parse_head()
                elif part is _Part.SIZED_BODY:
                    may_go_on = self._parse_sized()
                elif part is _Part.CHUNKED_BODY:
                    may_go_on = self._parse_chunks()
                else:  # pipelined: one request at a time
                    self.flow.pause_reading()
                    return
                if not may_go_on:
                    return
        except (httptools.HttpParserError, _MalformedRequest) as error:
            self.logger.warning("Invalid HTTP request received.")
            self.reject_request(self._error or error)

    def _feed(self, end: int) -> None:
        """Let the parser read up to there."""
        start, self._parsed = self._parsed, end
        is_small = end - start <= _COPIED_BYTES
        self.parser.feed_data(self._buffer[start:end] if is_small else memoryview(self._buffer)[start:end])

    # -- head

    def _parse_head(self) -> bool:
        start = self._parsed
        if self._buffer[start] <= 0x20:  # llhttp would skip blank lines
            raise _MalformedRequest
        end = self._buffer.find(_HEAD_END, max(start, self._searched - len(_HEAD_END) + 1), start + MAX_HEAD_BYTES)
        if end < 0:
            if len(self._buffer) - start >= MAX_HEAD_BYTES or _BARE_LF.search(self._buffer, max(start, self._searched)):
                raise _MalformedRequest
            self._searched = len(self._buffer)
            return False
        end += len(_HEAD_END)
        self._header_lines = self._buffer.count(b"\n", start, end) - 2
        if self._header_lines > MAX_HEADER_LINES:
            raise _MalformedRequest
        try:
            self._feed(end)
            is_upgrade = False
        except httptools.HttpParserUpgrade:
            is_upgrade = True
        method = self._method
        if not self._buffer.startswith(b"%b %b HTTP/1." % (method, self.url), start):
            raise _MalformedRequest  # llhttp skips blanks, and reads RTSP
        fields = dict(self.headers)
        self._part = self._framing(fields)
        if not is_upgrade and self._is_complete != (self._part is _Part.NONE):
            raise _MalformedRequest  # the parser sees another body than we do
        if self._part is _Part.NONE and not is_upgrade and b"expect" not in fields and self._send_ready():
            return True
        self._start_request(method.decode("ascii"), fields)
        if is_upgrade:
            self._stay_in_http()
        if self._part is _Part.NONE:
            self._complete_request()
        return True

    def _stay_in_http(self) -> None:
        """Let a new parser read the body: llhttp takes it for another protocol, but no upgrade is accepted."""
        self.parser = httptools.HttpRequestParser(self)
        self._is_complete = False
        part, self._part = self._part, _Part.NONE
        if part is not _Part.NONE:
            framing = "transfer-encoding: chunked" if self._body_left == 0 else f"content-length: {self._body_left}"
            self.parser.feed_data(f"POST / HTTP/1.1\r\n{framing}\r\n\r\n".encode())
            self.headers = []
        self._part = part

    def on_message_begin(self) -> None:
        if self._part is _Part.HEAD:
            self.url = b""
            self.headers = []
            self._is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; after the head a trailer, which the application does not get."""
        self.headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        self._method = self.parser.get_method()
        self._version = self.parser.get_http_version()
        self._keeps_alive = self.parser.should_keep_alive()

    def _start_request(self, method: str, fields: dict[bytes, bytes]) -> None:
        """Start the application."""
        version = self._version
        path, _, query = self.url.partition(b"?")
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method,
            "root_path": "",
            "path": unquote(path.decode("ascii")) if b"%" in path else path.decode("ascii"),
            "raw_path": path,
            "query_string": query,
            "headers": self.headers,
            "extensions": self.extensions,
        }
        self.headers = []  # of the trailers
        self.cycle = cycle = ResponseCycle(
            scope,
            self.order_transport,
            self.flow,
            self.server_state.default_headers,
            self.on_response_complete,
            expects_continue=version != "1.0" and fields.get(b"expect", b"").lower() == b"100-continue",
            keep_alive=version != "1.0" and self._keeps_alive,
        )
        task = self.loop.create_task(cycle.run(self.app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _send_ready(self) -> bool:
        """Answer a request without a body from prepared bytes, without a task; return whether there were any."""
        if (
            not self._may_send_ready
            or self._method != b"GET"
            or self._version != "1.1"
            or not self._keeps_alive
            or self.flow.write_paused
            or CLOSE_HEADER in self.server_state.default_headers
        ):
            return False
        response = self.find_ready(self.url, self.headers)
        if response is None:
            return False
        self._may_send_ready = False
        lines = [b"\r\n%b: %b" % header for header in self.server_state.default_headers]
        self.transport.write(b"".join([response.head, *lines, _HEAD_END, response.body]))
        self._part = _Part.HEAD
        self.phase = Phase.SERVER  # from here on the client has its time for the next request
        self.complete_response()
        return True

    def _framing(self, fields: dict[bytes, bytes]) -> _Part:
        """Return the part after the head. Raises `_MalformedRequest` for what a proxy in front could read otherwise."""
        headers = self.headers
        hosts = sum(name == b"host" for name, _ in headers) if len(fields) < len(headers) else b"host" in fields
        if self._version not in _VERSIONS or hosts > 1 or (not hosts and self._version != "1.0"):
            raise _MalformedRequest
        if b"transfer-encoding" in fields:
            codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
            if b"content-length" in fields or codings != [b"chunked"]:
                raise _MalformedRequest
            self._chunks, self._turn, self._chunk_left, self._idle_bytes = ChunkCounter(), TurnCounter(), 0, 0
            return _Part.CHUNKED_BODY
        self._body_left = int(fields.get(b"content-length", b"0"))
        return _Part.SIZED_BODY if self._body_left else _Part.NONE

    # -- body

    def _parse_sized(self) -> bool:
        size = min(self._body_left, len(self._buffer) - self._parsed)
        self._body_left -= size
        self._feed(self._parsed + size)
        if bool(self._body_left) == self._is_complete:
            raise _MalformedRequest
        if self._is_complete:
            self._complete_request()
        return True

    def _parse_chunks(self) -> bool:
        """Parse what is left of the current chunk, and the line after it.

        So the parser does not read beyond the end of the body, which it cannot be asked for.
        """
        if self._turn.is_over:
            self.hold(self._turn.start_next())
            return False
        start, received = self._parsed, len(self._buffer)
        end = start + self._chunk_left
        if end > received:
            self._chunk_left, end = end - received, received
        else:
            self._chunk_left, self._line_start = 0, end
            end = self._buffer.find(b"\n", end, end + MAX_HEAD_BYTES) + 1 or end
            if end == start:
                if self._idle_bytes + received - start > MAX_HEAD_BYTES:
                    raise _MalformedRequest
                return False
        self._idle_bytes += end - start
        self._feed(end)
        if self._idle_bytes > MAX_HEAD_BYTES or self._header_lines + len(self.headers) > MAX_HEADER_LINES:
            raise _MalformedRequest
        if self._is_complete:
            self._complete_request()
        return True

    def on_chunk_header(self) -> None:
        """Note the size of a chunk, which the parser has found well-formed."""
        size = int(self._buffer[self._line_start : self._parsed].partition(b";")[0], 16)
        self._chunk_left = size + len(_LINE_END) if size else 0
        self._is_chunk_start = True

    def on_body(self, body: bytes) -> None:
        if self._part is _Part.CHUNKED_BODY:
            self._count_chunk(len(body))
        cycle = self.cycle
        if not cycle.response_complete and cycle.add_body(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def _count_chunk(self, size: int) -> None:
        self._idle_bytes = 0
        self._turn.add(size)
        try:
            self._chunks.add(size, is_start=self._is_chunk_start)
        except TooManyPieces as error:
            self._error = error
            raise
        self._is_chunk_start = False

    def on_message_complete(self) -> None:
        self._is_complete = True

    def _complete_request(self) -> None:
        """Let the application have the end of the body, or let the next request begin if it has answered already."""
        cycle = self.cycle
        if cycle.response_complete:
            self._part = _Part.HEAD
            return
        self._part = _Part.NONE
        cycle.more_body = False
        cycle.message_event.set()

    # -- responses

    def on_response_complete(self) -> None:
        """Start the next request, which may have been received already."""
        self.complete_response()
        if self.transport.is_closing() or self.is_lingering:
            return
        if self._part is _Part.CHUNKED_BODY:
            self.linger()  # parsing the chunks would be work for nothing
            return
        if self._part is _Part.NONE:
            self._part = _Part.HEAD
            if self._parsed < len(self._buffer):
                self.parse_more()
        self.update_phase()

    def linger(self) -> None:
        super().linger()
        self._buffer, self._parsed, self._searched = b"", 0, 0

    def client_phase(self) -> Phase:
        part = self._part
        if part is _Part.NONE:
            return Phase.SERVER
        if part is _Part.HEAD:
            has_begun = not self.has_answered or self._parsed < len(self._buffer)
            return Phase.HEAD if has_begun else Phase.IDLE
        return Phase.LEFTOVER if self.cycle.response_complete else Phase.BODY

    def can_answer(self) -> bool:
        if self._part is _Part.HEAD:
            return self.cycle is None or self.cycle.response_complete
        return not self.cycle.response_started

    def is_continue_awaited(self) -> bool:
        return bool(self.cycle.waiting_for_100_continue)
