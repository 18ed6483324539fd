"""One request and its response, on a connection that httptools parses."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HEADER_RE, STATUS_LINE, RequestResponseCycle

_JOINED_BYTES: Final = 64 * 1024
"""A body of at most this size is written together with its head; a larger one is not copied."""
_NO_BODY: Final = {204, 304}
_FRAMING: Final = {b"content-length: ", b"transfer-encoding: ", b"connection: "}
_CONTROLS: Final = bytes(code for code in (*range(32), 127) if code != ord("\t"))
"""No header value has one: the only ones in a head are the ends of its lines, and they are counted."""


@lru_cache(maxsize=256)
def _start_line(name: bytes) -> bytes:
    """Return the start of a header's line. Raises RuntimeError for a name that is not a token."""
    if HEADER_RE.search(name):
        raise RuntimeError("Invalid HTTP header name.")
    return name.lower() + b": "


class ResponseCycle(RequestResponseCycle):
    """uvicorn's, with its head and a body of known size in one write, and without chunks for HTTP/1.0."""

    _head: bytes | None = None
    """The head of a response with Content-Length, until the body is there."""

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{message['type']}' sent, after response already completed.")
        expected = "http.response.body" if self.response_started else "http.response.start"
        if message["type"] != expected:
            raise RuntimeError(f"Expected ASGI message '{expected}', but got '{message['type']}'.")
        if self.response_started:
            self._send_body(message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            self._send_head(message["status"], list(message.get("headers", ())))

    def _send_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        added = 1
        for name, value in self.default_headers + headers:
            start = _start_line(name)
            if start in _FRAMING:
                if start == b"content-length: ":
                    self.expected_content_length, self.chunked_encoding = int(value), False
                elif start == b"transfer-encoding: ":
                    continue
                elif b"close" in value.lower():
                    self.keep_alive = False
                    continue
            lines += (start, value, b"\r\n")
            added += 1
        if status in _NO_BODY or self.scope["method"] == "HEAD":
            self.expected_content_length, self.chunked_encoding = 0, False
        elif self.chunked_encoding is None and self.scope["http_version"] != "1.0":
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
            added += 1
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
            added += 1
        lines.append(b"\r\n")
        head = b"".join(lines)
        if len(head) - len(head.translate(None, _CONTROLS)) != len(b"\r\n") * (added + 1):
            raise RuntimeError("Invalid HTTP header value.")
        if self.chunked_encoding is False:
            self._head = head
        else:
            self.transport.write(head)

    def _send_body(self, body: bytes, *, is_last: bool) -> None:
        if self.scope["method"] == "HEAD":
            body = b""
        if self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if is_last:
                body += b"0\r\n\r\n"
        elif self.chunked_encoding is False:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("Response content longer than Content-Length")
        if self._head is not None:
            head, self._head = self._head, None
            if len(body) <= _JOINED_BYTES:
                body = head + body
            else:
                self.transport.write(head)
        if body:
            self.transport.write(body)
        if is_last:
            self._complete()

    def _complete(self) -> None:
        if self.expected_content_length:
            raise RuntimeError("Response content shorter than Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
