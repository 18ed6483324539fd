"""One request and its response, on a connection that httptools parses."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HEADER_RE, STATUS_LINE

from broker.server.transports import OrderTransport, Signal

_LOGGER: Final = logging.getLogger("uvicorn.error")

_JOINED_BYTES: Final = 64 * 1024
"""A body of at most this size is written together with its head; a larger one is not copied."""
_NO_BODY: Final = {204, 304}
_CONTROLS: Final = bytes(code for code in (*range(32), 127) if code != ord("\t"))
"""No header value has one: the only ones in a head are the ends of its lines, and they are counted."""
_FAILED: Final = b"Internal Server Error"
_FAILED_HEADERS: Final = (
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"content-length", b"%d" % len(_FAILED)),
    (b"connection", b"close"),
)


@lru_cache(maxsize=256)  # most responses have the same headers
def _check_names(names: tuple[bytes, ...]) -> None:
    """Raise RuntimeError for a name that is not a token in lower case, as ASGI demands it."""
    if any(HEADER_RE.search(name) or name != name.lower() for name in names):
        raise RuntimeError("Invalid HTTP header name.")


def _ignore_response() -> None:
    """Stand in for the protocol when the application has ended."""


class ResponseCycle:
    """What the application of one request receives and sends.

    uvicorn's own, but with a head and a body of known size in one write, without chunks for HTTP/1.0, and without the
    copies of a body that arrives in one piece.
    """

    __slots__ = (
        "_expected_bytes",
        "_head",
        "_is_chunked",
        "body",
        "default_headers",
        "disconnected",
        "flow",
        "keep_alive",
        "message_event",
        "more_body",
        "on_response",
        "response_complete",
        "response_started",
        "scope",
        "transport",
        "waiting_for_100_continue",
    )

    def __init__(
        self,
        scope: dict[str, Any],
        transport: OrderTransport,
        flow: FlowControl,
        default_headers: Sequence[tuple[bytes, bytes]],
        on_response: Callable[[], None],
        *,
        expects_continue: bool,
        keep_alive: bool,
    ) -> None:
        """on_response: called when the response is complete."""
        self.scope = scope
        self.transport = transport
        self.flow = flow
        self.default_headers = default_headers
        self.on_response = on_response
        self.message_event = Signal()
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expects_continue
        self.body: bytes | bytearray = b""
        """Received, and not yet taken by the application."""
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self._is_chunked: bool | None = None
        """None until that is known; False with a Content-Length, or without a body."""
        self._expected_bytes = 0
        self._head: bytes | None = None
        """The head of a response with Content-Length, until the body is there."""

    async def run(self, app: Callable[..., Awaitable[None]]) -> None:
        """Run the application; end the connection of one that does not end its response."""
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:
            _LOGGER.error("Exception in ASGI application\n", exc_info=error)
            await self._fail()
        else:
            if not self.response_complete and not self.disconnected:
                _LOGGER.error("ASGI callable returned without completing response.")
                await self._fail()
        finally:
            self.on_response = _ignore_response  # no circle of references is left

    async def _fail(self) -> None:
        if self.response_started:
            self.transport.close()
        else:
            await self.send({"type": "http.response.start", "status": 500, "headers": _FAILED_HEADERS})
            await self.send({"type": "http.response.body", "body": _FAILED})

    # -- request

    def add_body(self, data: bytes) -> int:
        """Hand a piece of the body to the application; return the bytes that it has not taken yet."""
        held = self.body
        if not held:
            self.body = data
        elif isinstance(held, bytearray):
            held += data
        else:
            self.body = bytearray(held) + data
        self.waiting_for_100_continue = False
        self.message_event.set()
        return len(self.body)

    async def receive(self) -> dict[str, Any]:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            if self.flow.read_paused:
                self.flow.resume_reading()
            if not self.message_event.is_set:
                await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), b""
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    # -- response

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
            self._send_head(message["status"], message.get("headers", ()))
            if "body" in message:  # `WHOLE_RESPONSE`
                self._send_body(message["body"], is_last=True)

    def _send_head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        headers = [*self.default_headers, *headers]
        fields = dict(headers)
        _check_names((*fields,))
        if b"connection" in fields or b"transfer-encoding" in fields:
            headers = self._without_framing(headers)
        lines = [STATUS_LINE[status][:-2], *map(b": ".join, headers)]
        if b"content-length" in fields:
            self._expected_bytes, self._is_chunked = int(fields[b"content-length"]), False
        if status in _NO_BODY or self.scope["method"] == "HEAD":
            self._expected_bytes, self._is_chunked = 0, False
        elif self._is_chunked is None and self.scope["http_version"] != "1.0":
            self._is_chunked = True
            lines.append(b"transfer-encoding: chunked")
        if not self.keep_alive:
            lines.append(b"connection: close")
        lines.append(b"\r\n")
        head = b"\r\n".join(lines)
        if len(head) - len(head.translate(None, _CONTROLS)) != len(b"\r\n") * len(lines):
            raise RuntimeError("Invalid HTTP header value.")
        if self._is_chunked is False:
            self._head = head
        else:
            self.transport.write(head)

    def _without_framing(self, headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the headers but for those by which the cycle says itself where the response and the connection end."""
        kept = [(name, value) for name, value in headers if name != b"transfer-encoding"]
        closing = [header for header in kept if header[0] == b"connection" and b"close" in header[1].lower()]
        if closing:
            self.keep_alive = False
        return [header for header in kept if header not in closing]

    def _send_body(self, body: bytes, *, is_last: bool) -> None:
        if self.scope["method"] == "HEAD":
            body = b""
        if self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if is_last:
                body += b"0\r\n\r\n"
        elif self._is_chunked is False:
            self._expected_bytes -= len(body)
            if self._expected_bytes < 0:
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
        if self._expected_bytes:
            raise RuntimeError("Response content shorter than Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
