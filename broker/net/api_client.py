"""Requests to one provider's API, each classified by what the provider may have seen of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

from broker.errors import EgressBlocked, NotSent, ProviderError
from broker.net.connection import HttpConnection, Origin
from broker.net.connection_pool import ConnectionPool
from broker.net.dialing import ConnectFailed, Dialer
from broker.net.http_request import (
    FilePart,
    HttpRequest,
    InvalidHeader,
    StreamedBody,
    build_request,
    encode_form,
    encode_json,
    quote_unsafe,
    with_params,
)
from broker.net.pieces import TooManyPieces
from broker.net.response_parser import HttpFailure
from broker.net.url_policy import ParsedUrl, parse_url, redact_url
from webhooks.strict_json import read_json

CONNECT_SECONDS: Final = 10.0
"""Longest wait for a free connection, and again for DNS, TCP and TLS together."""

MAX_CONCURRENT_UPLOADS: Final = 4
"""A file is whole in memory while it is uploaded."""

MAX_ANSWER_BYTES: Final = 8 * 2**20
"""Longest response that is read as a whole."""
MAX_JSON_DEPTH: Final = 64


@dataclass(frozen=True, kw_only=True)
class HttpResponse:
    """A complete response."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """By lower-case name."""
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """Return the body as JSON; raise `ProviderError` for anything else, quoting none of it.

        Defects without a second meaning are tolerated: rejecting the response to an order could lose a paid job.
        """
        try:
            # A duplicate name is harmless here, where one parser reads the text: the last value counts.
            return read_json(self.body, max_depth=MAX_JSON_DEPTH, repair_surrogates=True, allow_duplicate_names=True)
        except ValueError:
            raise ProviderError(f"HTTP {self.status} with {len(self.body)} bytes that are not sound JSON") from None


@dataclass(frozen=True, kw_only=True)
class StreamedResponse:
    """A response whose body is still arriving; usable only inside the block that opened it."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """By lower-case name."""
    chunks: AsyncIterator[bytes] = field(repr=False)
    """The body, once. Raises `ProviderError` beyond the limit that the request named."""


class ApiClient:
    """HTTP client for one provider's API, for the life of the process. The URL is the operator's, hence trusted."""

    def __init__(self, *, timeout: float, max_connections: int, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        """timeout: seconds for request and response once connected. Redirects are returned like other responses."""
        self._pool = ConnectionPool(Dialer())
        # the worker limits the number of streams: they are held for minutes, and must not take the slots of requests
        self._slots = asyncio.Semaphore(max_connections)
        self._upload_slots = asyncio.Semaphore(MAX_CONCURRENT_UPLOADS)
        self._timeout = timeout
        self._max_answer_bytes = max_answer_bytes

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        files: Sequence[FilePart] = (),
        timeout: float | None = None,
    ) -> HttpResponse:
        """Send one request, once. `form` and `files` make a multipart body; at most four such requests run at once.

        timeout: seconds, where less than the client's own is enough.

        Raises `NotSent` when no byte of the request can have left, `ProviderError` for every later failure.
        """
        target = _Target.parse(method, url, params)
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        if form or files:
            async with self._upload_slots:  # the content is whole in memory
                contents = [(file, b"".join([chunk async for chunk in file.read()])) for file in files]
                media_type, body = encode_form(form or {}, contents)
                return await self._send_whole(target, target.build(headers, body, media_type), seconds)
        body = target.encode_json(json)
        return await self._send_whole(
            target, target.build(headers, body, "application/json" if body else None), seconds
        )

    async def _send_whole(self, target: _Target, request: HttpRequest, seconds: float) -> HttpResponse:
        """Send a request and return the whole response."""
        await self._take_slot(target, min(seconds, CONNECT_SECONDS))
        try:
            connection = await self._connect(target, seconds)
            try:
                with _ProviderErrors(target):
                    connection.expire_after(seconds)
                    status, headers = await _send(target, connection, request)
                    body = await _read_whole(target, connection, self._max_answer_bytes)
                    return HttpResponse(status=status, headers=headers, body=body)
            finally:
                self._pool.release(connection)
        finally:
            self._slots.release()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        body: StreamedBody | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Send one request, once, and read the response while it arrives. Neither body is ever whole in memory.

        timeout: seconds for request and response, whatever the client's own. max_bytes: limit of the response.

        Raises as `request` does, also for errors while the block reads.
        """
        target = _Target.parse(method, url, params)
        request = target.build(headers, body or b"", None if body is None else body.media_type)
        connection = await self._connect(target, timeout)
        try:
            with _ProviderErrors(target):
                async with asyncio.timeout(timeout), aclosing(_read_body(target, connection, max_bytes)) as chunks:
                    status, answer_headers = await _send(target, connection, request)
                    yield StreamedResponse(status=status, headers=answer_headers, chunks=chunks)
        finally:
            self._pool.release(connection)

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def _connect(self, target: _Target, seconds: float) -> HttpConnection:
        """Return a connection, to which nothing was sent yet."""
        try:
            return await self._pool.acquire(target.origin, min(seconds, CONNECT_SECONDS))
        except ConnectFailed as error:
            raise NotSent(f"{target}: no connection ({error})", at=error.at) from None

    async def _take_slot(self, target: _Target, seconds: float) -> None:
        if not self._slots.locked():  # without a timer
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout(seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise NotSent(f"{target}: all connections are in use") from None


class _Target(NamedTuple):
    """Method and address of a request; its text, for messages, has no query."""

    method: str
    url: ParsedUrl
    origin: Origin

    @classmethod
    def parse(cls, method: str, url: str, params: Mapping[str, str] | None) -> _Target:
        try:
            parsed, origin = _parse_address(url)
        except EgressBlocked as error:
            raise NotSent(f"{method} {redact_url(url)}: {error}", permanent=True) from None
        return cls(method, replace(parsed, target=with_params(parsed.target, params)) if params else parsed, origin)

    def __str__(self) -> str:
        return f"{self.method} {self.url}"

    def encode_json(self, document: Any) -> bytes:
        """Return the JSON of a body, none for None; raise `NotSent(permanent)` for what has no JSON."""
        try:
            return b"" if document is None else encode_json(document)
        except ValueError:
            raise NotSent(f"{self}: the request cannot be encoded", permanent=True) from None

    def build(
        self, headers: Mapping[str, str] | None, body: bytes | StreamedBody, media_type: str | None
    ) -> HttpRequest:
        """Return the request; raise `NotSent(permanent)` for one that cannot be encoded and so was not sent."""
        content_type = {} if media_type is None else {"Content-Type": media_type}
        try:
            return build_request(self.method, self.url, {**content_type, **(headers or {})}, body)
        except InvalidHeader as error:
            raise NotSent(f"{self}: {error}", permanent=True) from None


@lru_cache(maxsize=128)
def _parse_address(url: str) -> tuple[ParsedUrl, Origin]:
    """Parse the address of a request; most requests go to a few of them."""
    parsed = parse_url(quote_unsafe(url))
    return parsed, Origin(parsed.scheme, parsed.host, parsed.port)


async def _send(target: _Target, connection: HttpConnection, request: HttpRequest) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of the response."""
    response = await connection.send(request)
    headers = response.header_map()
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ProviderError(f"{target}: the response is encoded although identity was requested")
    return response.status, headers


async def read_response(response: StreamedResponse) -> HttpResponse:
    """Return a streamed response as a whole. Raises `ProviderError` for one that is too long for that."""
    body = bytearray()
    async for chunk in response.chunks:
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ProviderError(f"HTTP {response.status} with more than {MAX_ANSWER_BYTES} bytes")
    return HttpResponse(status=response.status, headers=response.headers, body=bytes(body))


async def _read_whole(target: _Target, connection: HttpConnection, max_bytes: int) -> bytes:
    response = connection.response
    part = await connection.read()
    if response.is_read and len(part) <= max_bytes:  # nearly all
        return part
    parts = [part]
    while part and response.received_bytes <= max_bytes:
        part = await connection.read()
        parts.append(part)
    if response.received_bytes > max_bytes:
        raise _too_long(target, max_bytes)
    return b"".join(parts)


async def _read_body(target: _Target, connection: HttpConnection, max_bytes: int) -> AsyncGenerator[bytes]:
    size = 0
    while part := await connection.read():
        size += len(part)
        if size > max_bytes:
            raise _too_long(target, max_bytes)
        yield part


def _too_long(target: _Target, max_bytes: int) -> ProviderError:
    return ProviderError(f"{target}: the response is longer than {max_bytes} bytes")


class _ProviderErrors:
    """Translates what happens once a byte may have left: the outcome is unknown, so a repetition may cost twice."""

    def __init__(self, target: _Target) -> None:
        self._target = target

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, TimeoutError):
            raise ProviderError(f"{self._target}: no complete response in time") from None
        if isinstance(error, HttpFailure | TooManyPieces):
            raise ProviderError(f"{self._target}: {error}") from None
