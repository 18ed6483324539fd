"""HTTP/1.1 connection of a client: one request at a time, sent once, and the response to it."""

from __future__ import annotations

import asyncio
import ctypes
import select
from collections.abc import AsyncGenerator
from typing import Final, NamedTuple, cast

from broker.net.http_request import HttpRequest, StreamedBody
from broker.net.response_parser import ConnectionBroken, HttpFailure, ResponseParser

PART_BYTES: Final = 256 * 1024
"""Bytes of a body that are returned at once; bytes are received in pieces of about the same size."""
MAX_BUFFERED_BYTES: Final = PART_BYTES
"""Bytes of a body that wait for their reader before the connection stops receiving."""


class _PollRequest(ctypes.Structure):
    """`struct pollfd` of poll(2)."""

    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


# Not `select.poll`, which lets other threads run: the loop would wait for them, although the call returns at once.
_poll: Final = ctypes.PyDLL(None).poll
_poll.argtypes = (ctypes.POINTER(_PollRequest), ctypes.c_ulong, ctypes.c_int)


class Origin(NamedTuple):
    """The server that a connection leads to, as URLs name it."""

    scheme: str
    host: str
    port: int


class BadBody(HttpFailure):
    """The body of our own request has another size than announced."""

    def __init__(self) -> None:
        super().__init__("the body of the request has another size than announced")


class HttpConnection(asyncio.Protocol):
    """A connection. `send` a request, `read` the body; the response is in `response`.

    Nothing is sent before `send`, and nothing is ever sent again.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.is_reused = False
        self.response = ResponseParser()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._is_sending = False
        self._is_idle = True
        self._has_received = False
        self._is_reading_paused = False
        self._is_writing_paused = False
        self._turn: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._poll_request: _PollRequest | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._wanted_bytes = 0

    @property
    def ended_unanswered(self) -> bool:
        """Return whether the connection ended after a request and before any byte of a response."""
        return self.response.error is not None and not self._has_received

    def expire_after(self, seconds: float) -> None:
        """Let `send` and `read` raise TimeoutError after so many seconds, until the connection is idle or closed.

        At a third of the cost of `asyncio.timeout`. What else a caller waits for, like a streamed body, is not limited.
        """
        self._expiry = self._loop.call_later(seconds, self._expire)

    def stop_expiry(self) -> None:
        """Let the time of `expire_after` end nothing more."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    async def send(self, request: HttpRequest) -> ResponseParser:
        """Send a request, and return its response when the head has arrived. Raises `HttpFailure`, `TooManyPieces`."""
        if self._transport is None:
            raise ConnectionBroken
        self._is_idle, self._has_received, self._wanted_bytes = False, False, 0
        self.response = response = ResponseParser()
        self._is_sending = True
        if isinstance(request.body, bytes):
            self._transport.write(request.head + request.body)
        else:
            self._transport.write(request.head)
            await self._send_body(request.body)
        self._is_sending = False
        while not (response.has_head or response.has_ended):
            await self._wait()
        if response.error is not None:
            raise response.error
        return response

    async def read(self, at_least: int = 1) -> bytes:
        """Return at least so many bytes of the body, up to `PART_BYTES`; fewer at its end, then none.

        Raises as `send` does. A cancelled call loses nothing.
        """
        response = self.response
        while not self.can_read(at_least):
            self._wanted_bytes = at_least
            await self._wait()
        if response.buffered_bytes:
            part = response.take(max(at_least, PART_BYTES))
            if response.buffered_bytes < MAX_BUFFERED_BYTES:
                self._resume_reading()
            return part
        if response.error is not None:
            raise response.error
        return b""

    def can_read(self, at_least: int = 1) -> bool:
        """Return whether `read` returns or raises without waiting."""
        return self.response.buffered_bytes >= at_least or self.response.has_ended

    def make_idle(self) -> bool:
        """Return whether the connection can take another request; one that cannot is closed."""
        response, transport = self.response, self._transport
        if self._is_sending or not (response.is_complete and response.keeps_alive) or transport is None:
            self.close()
            return False
        self.stop_expiry()
        self._is_idle = True
        self._resume_reading()
        return not transport.is_closing()

    def is_alive(self) -> bool:
        """Return whether the idle connection is open and silent; also asks the kernel, which knows of an end first."""
        if self._transport is None or self._transport.is_closing():
            return False
        if self._poll_request is None:
            self._poll_request = _PollRequest(self._transport.get_extra_info("socket").fileno(), select.POLLIN, 0)
        return not _poll(ctypes.byref(self._poll_request), 1, 0)

    def close(self) -> None:
        """Close at once; what was not sent or received is dropped."""
        if self._turn is not None:
            self._turn.cancel()
        self.stop_expiry()
        if self._transport is not None:
            self._transport.abort()

    def _expire(self) -> None:
        self._expiry = None
        self.response.fail(TimeoutError())
        self._wake()

    async def _send_body(self, body: StreamedBody) -> None:
        """Send a body while it is produced, up to a response that refuses it."""
        sent, chunks = 0, body.chunks
        try:
            async for chunk in chunks:
                sent += len(chunk)
                if sent > body.size:
                    raise BadBody
                if self._is_refused() or self._transport is None:
                    return
                self._transport.write(chunk)
                while self._is_writing_paused and not self._is_refused():
                    await self._wait()
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        if sent < body.size:
            raise BadBody

    def _is_refused(self) -> bool:
        """Return whether the server does not want the rest of the body."""
        response = self.response
        if response.error is not None or (response.has_head and response.status >= 300):
            response.keeps_alive = False
            return True
        return False

    async def _wait(self) -> None:
        """Wait until a part of the response has arrived, or the connection can send again or has ended."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _resume_reading(self) -> None:
        if self._is_reading_paused and self._turn is None and self._transport is not None:
            self._is_reading_paused = False
            self._transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._is_reading_paused and self._transport is not None:
            self._is_reading_paused = True
            self._transport.pause_reading()

    def _after_feed(self, pause_seconds: float) -> None:
        response = self.response
        if response.has_more:
            self._pause_reading()
            self._turn = self._loop.call_later(pause_seconds, self._feed_rest)
        elif response.buffered_bytes >= MAX_BUFFERED_BYTES:
            self._pause_reading()
        is_enough = response.has_head and response.buffered_bytes >= self._wanted_bytes
        if is_enough or response.has_ended or self._is_sending:
            self._wake()

    def _feed_rest(self) -> None:
        self._turn = None
        self._after_feed(self.response.feed_rest())
        if self.response.buffered_bytes < MAX_BUFFERED_BYTES:
            self._resume_reading()

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._is_idle:  # nothing was asked: these bytes must not become the next response
            self.close()
            return
        self._has_received = True
        self._after_feed(self.response.feed(data))

    def eof_received(self) -> None:
        self.response.feed_eof()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.response.fail(ConnectionBroken())
        if self._turn is not None:
            self._turn.cancel()
        self._wake()

    def pause_writing(self) -> None:
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._wake()
