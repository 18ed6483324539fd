"""Limits on HTTP messages that arrive in tiny pieces.

A parser spends as much time on a chunk of one byte as on one of 64 KiB, and all of it on the event loop. The limits
hold for requests and responses alike, and for every parser.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from ssl import SSLContext
from typing import Any, Final, cast

import anyio
import httpcore

MAX_SMALL_CHUNKS: Final = 4096
"""Chunks that one body may have, unless they average at least `MIN_CHUNK_BYTES`."""
MIN_CHUNK_BYTES: Final = 64
MAX_INTERIM_RESPONSES: Final = 16
"""1xx responses before a response."""
EVENTS_PER_TURN: Final = 256
"""Parser events of one connection before other tasks run again: a millisecond or two."""
SMALL_TURN_BYTES: Final = EVENTS_PER_TURN * 1024
PAUSE_SECONDS: Final = 0.02
"""Pause of a connection after a turn with fewer bytes: a few such connections must not use up the processor."""
READ_BYTES: Final = 256 * 1024

_HEAD_END: Final = re.compile(rb"\n\r?\n")
_INTERIM_STATUS: Final = re.compile(rb"HTTP/[0-9.]+ +1")
_STATUS_BYTES: Final = len(b"HTTP/1.1 1")


class TooManyPieces(httpcore.RemoteProtocolError):
    """The peer sends more tiny pieces than allowed; the message names the limit."""


class ChunkCounter:
    """Counts the chunks of one body."""

    def __init__(self) -> None:
        self._chunks = 0
        self._bytes = 0

    def add(self, size: int, *, is_start: bool = True) -> None:
        """Count a chunk, or a later part of one. size: bytes. Raises `TooManyPieces`."""
        self._chunks += is_start
        self._bytes += size
        ended = self._chunks - 1  # the rest of the last one may be on its way
        if self._chunks > MAX_SMALL_CHUNKS and self._bytes < ended * MIN_CHUNK_BYTES:
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


async def limited_chunks(response: httpcore.Response) -> AsyncGenerator[bytes]:
    """Yield the body of a response, and let other tasks run in between. Raises `TooManyPieces`."""
    is_chunked = any(name.lower() == b"transfer-encoding" for name, _ in response.headers)
    chunks, turn = ChunkCounter(), TurnCounter()
    body = cast(AsyncGenerator[bytes, None], cast(AsyncIterable[bytes], response.aiter_stream()))
    async with aclosing(body) as parts:
        async for part in parts:
            if is_chunked:
                chunks.add(len(part))
            yield part
            turn.add(len(part))
            if turn.is_over:
                await asyncio.sleep(turn.start_next())


class LimitedBackend(httpcore.AsyncNetworkBackend):
    """Network backend whose streams are `LimitedStream`."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        return LimitedStream(await self._inner.connect_tcp(host, port, timeout, local_address, socket_options))


class LimitedStream(httpcore.AsyncNetworkStream):
    """Stream of a client connection that limits 1xx responses, and reads 256 KiB at a time.

    httpcore drops all 1xx responses that it has read in one go, so they are counted before it sees them. Its own 64 KiB
    would cost a copy and an event-loop turn more each.
    """

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._interim = 0
        self._head: bytes | None = b""
        """Received bytes of an incomplete head; None once the response itself has begun."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._inner.read(max(max_bytes, READ_BYTES), timeout)
        if self._head is not None:
            self._count_interim(self._head + data)
        return data

    def _count_interim(self, head: bytes) -> None:
        while _INTERIM_STATUS.match(head):
            end = _HEAD_END.search(head)
            if end is None:
                break
            self._interim += 1
            if self._interim > MAX_INTERIM_RESPONSES:
                raise TooManyPieces(f"more than {MAX_INTERIM_RESPONSES} interim responses (HTTP 1xx)")
            head = head[end.end() :]
        has_begun = len(head) >= _STATUS_BYTES and not _INTERIM_STATUS.match(head)
        self._head = None if has_begun else head

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._interim, self._head = 0, b""  # a request: heads follow
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return LimitedStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:
            # httpcore forgets the socket when it is canceled in the middle of a handshake.
            with anyio.CancelScope(shield=True):
                await self._inner.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
