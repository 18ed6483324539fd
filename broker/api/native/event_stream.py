"""Server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from broker.api.http.waiting import wait_while_connected

PING_SECONDS: Final = 15.0
PING: Final = b": ping\n\n"
"""A comment, so that proxies do not close a stream without events; at least once in `PING_SECONDS`."""
_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "connection": "keep-alive",
    "x-accel-buffering": "no",
    "vary": "Accept-Language",
}


def event_bytes(event_id: str, data: bytes) -> bytes:
    """Return an event. data: one line."""
    return b"id: %b\ndata: %b\n\n" % (event_id.encode(), data)


class EventStream(StreamingResponse):
    """A stream that ends with its events or its connection, in the task of its request: thousands may be open."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, headers=_HEADERS)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await wait_while_connected(Request(scope, receive), self.stream_response(send), None)
