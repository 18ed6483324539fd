"""Requests to one provider's API, each classified by what the provider may have seen of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from ssl import SSLContext, SSLError
from typing import Any, Final, Literal, cast

import httpcore
import httpx

from broker.errors import NotSent, ProviderError
from broker.net.pieces import LimitedBackend, TooManyPieces, limited_chunks
from broker.net.url_policy import redact_url
from webhooks.strict_json import read_json

CONNECT_SECONDS: Final = 10.0
"""Longest wait for a free connection, and again for DNS, TCP and TLS together."""

KEEPALIVE_SECONDS: Final = 5.0
"""Short, so that an order rarely uses a connection that the provider is about to close."""

MAX_CONCURRENT_UPLOADS: Final = 4
"""A file is whole in memory while it is uploaded."""

MAX_ANSWER_BYTES: Final = 8 * 2**20
"""Longest response that is read as a whole."""
MAX_JSON_DEPTH: Final = 64
USER_AGENT: Final = "nano-banana-broker"


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
class StreamedBody:
    """A request body that is sent while it is produced."""

    size: int
    """Bytes of all chunks together."""
    chunks: AsyncIterator[bytes]
    """Raises `NotSent` if it cannot be completed: a server ignores half a body."""
    media_type: str = "application/json"


@dataclass(frozen=True, kw_only=True)
class StreamedResponse:
    """A response whose body is still arriving; usable only inside the block that opened it."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """By lower-case name."""
    chunks: AsyncIterator[bytes] = field(repr=False)
    """The body, once. Raises `ProviderError` beyond the limit that the request named."""


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """One file of a multipart form."""

    name: str
    filename: str
    media_type: str
    read: Callable[[], AsyncIterator[bytes]]
    """Streams the content; called when an upload slot is free."""


class ApiClient:
    """HTTP client for one provider's API, for the life of the process. The URL is the operator's, hence trusted."""

    def __init__(self, *, timeout: float, max_connections: int, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        """timeout: seconds for request and response once connected. Redirects are returned like other responses."""
        self._pool = _open_pool(max_connections)
        # held for minutes, so they must not take the connections of other requests; the worker limits their number
        self._streams = _open_pool(None)
        self._slots = asyncio.Semaphore(max_connections)  # the pool's own queue slows down with its length
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
        what = f"{method} {redact_url(url)}"
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        async with AsyncExitStack() as stack:
            fields = None
            if form or files:
                await stack.enter_async_context(self._upload_slots)
                fields = await _multipart_fields(form or {}, files)
            all_headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **(headers or {})}
            request = _build_request(what, method, url, all_headers, params=params or {}, json=json, files=fields)
            await stack.enter_async_context(self._slot(what, min(seconds, CONNECT_SECONDS)))
            sending = _send(what, self._pool, request, seconds=seconds, max_bytes=self._max_answer_bytes)
            response = await stack.enter_async_context(sending)
            return await read_response(response)

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
        what = f"{method} {redact_url(url)}"
        all_headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **(headers or {})}
        if body is not None:
            all_headers |= {"Content-Type": body.media_type, "Content-Length": str(body.size)}
        content = None if body is None else body.chunks
        request = _build_request(what, method, url, all_headers, params=params or {}, content=content)
        async with _send(what, self._streams, request, seconds=timeout, max_bytes=max_bytes) as response:
            yield response

    async def aclose(self) -> None:
        await self._pool.aclose()
        await self._streams.aclose()

    @asynccontextmanager
    async def _slot(self, what: str, seconds: float) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise NotSent(f"{what}: all connections are in use") from None
        try:
            yield
        finally:
            self._slots.release()


def _open_pool(max_connections: int | None) -> httpcore.AsyncConnectionPool:
    """Return a bare pool: httpx.AsyncClient would keep cookies and log URLs with their queries."""
    return httpcore.AsyncConnectionPool(
        ssl_context=tls_context(),
        max_connections=max_connections,
        keepalive_expiry=KEEPALIVE_SECONDS,
        network_backend=LimitedBackend(httpcore.AnyIOBackend()),
    )


@asynccontextmanager
async def _send(
    what: str, pool: httpcore.AsyncConnectionPool, request: httpcore.Request, *, seconds: float, max_bytes: int
) -> AsyncGenerator[StreamedResponse]:
    connect = min(seconds, CONNECT_SECONDS)
    request.extensions["timeout"] = {"pool": connect, "connect": connect, "read": seconds, "write": seconds}
    with _provider_errors(what):
        # Pool, TCP and TLS have their own, more specific time-outs; this one must not come before theirs.
        async with asyncio.timeout(3 * connect + seconds) as deadline:
            request.extensions["trace"] = _restart_when_sending(deadline, seconds)
            async with (
                aclosing(await pool.handle_async_request(request)) as response,
                aclosing(_read_body(what, response, max_bytes)) as chunks,
            ):
                headers = dict(httpx.Headers(response.headers))
                yield StreamedResponse(status=response.status, headers=headers, chunks=chunks)


async def read_response(response: StreamedResponse) -> HttpResponse:
    """Return a streamed response as a whole. Raises `ProviderError` for one that is too long for that."""
    body = bytearray()
    async for chunk in response.chunks:
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ProviderError(f"HTTP {response.status} with more than {MAX_ANSWER_BYTES} bytes")
    return HttpResponse(status=response.status, headers=response.headers, body=bytes(body))


async def _read_body(what: str, response: httpcore.Response, max_bytes: int) -> AsyncGenerator[bytes]:
    if httpx.Headers(response.headers).get("content-encoding", "identity").lower() != "identity":
        raise ProviderError(f"{what}: the response is encoded although identity was requested")
    size = 0
    async with aclosing(limited_chunks(response)) as parts:
        async for part in parts:
            size += len(part)
            if size > max_bytes:
                raise ProviderError(f"{what}: the response is longer than {max_bytes} bytes")
            yield part


def _build_request(
    what: str,
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    params: Mapping[str, str],
    json: Any = None,
    files: Sequence[tuple[str, Any]] | None = None,
    content: AsyncIterator[bytes] | None = None,
) -> httpcore.Request:
    """Return the request; raise `NotSent(permanent)` for one that cannot be encoded and so was certainly not sent."""
    for name, value in headers.items():
        # h11 would reject it too, but its message quotes the value: a key with a line break in it
        if not value.isascii() or not value.isprintable():
            raise NotSent(f"{what}: the header {name} has characters that headers cannot have", permanent=True)
    try:
        address = httpx.URL(url).copy_merge_params(params)
        request = httpx.Request(method, address, headers=headers, json=json, files=files, content=content)
    except (httpx.InvalidURL, ValueError):
        raise NotSent(f"{what}: the request cannot be encoded", permanent=True) from None
    if address.scheme not in ("http", "https") or not address.host or not 0 < (address.port or 80) < 65536:
        raise NotSent(f"{what}: the address needs http:// or https://, a host and a possible port", permanent=True)
    return httpcore.Request(
        request.method,
        httpcore.URL(scheme=address.raw_scheme, host=address.raw_host, port=address.port, target=address.raw_path),
        headers=request.headers.raw,
        content=cast(AsyncIterable[bytes], request.stream),
    )


def _restart_when_sending(deadline: asyncio.Timeout, seconds: float) -> Callable[[str, Any], Awaitable[None]]:
    """Start the time-out when the first byte leaves: read time-outs alone would let a response trickle endlessly."""

    async def on_event(event: str, _: Any) -> None:
        if event == "http11.send_request_headers.started":
            deadline.reschedule(asyncio.get_running_loop().time() + seconds)

    return on_event


@contextmanager
def _provider_errors(what: str) -> Iterator[None]:
    """Translate errors into "certainly not sent" and "unknown": only the first may be repeated at no cost."""
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout) as exc:
        raise NotSent(f"{what}: no connection ({str(exc) or type(exc).__name__})", at=_failed_stage(exc)) from None
    except (httpcore.TimeoutException, TimeoutError):
        raise ProviderError(f"{what}: no complete response in time") from None
    except httpcore.NetworkError:
        raise ProviderError(f"{what}: the connection broke") from None
    except TooManyPieces as exc:
        raise ProviderError(f"{what}: {exc}") from None
    except httpcore.ProtocolError:
        raise ProviderError(f"{what}: the response is cut short or is not HTTP") from None


def _failed_stage(error: BaseException) -> Literal["name", "connection", "tls", "time-out"]:
    """Return the stage at which connecting failed: each has a cure of its own."""
    if isinstance(error, httpcore.TimeoutException):
        return "time-out"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "name"
        if isinstance(cause, SSLError):
            return "tls"
        cause = cause.__cause__ or cause.__context__
    return "connection"


async def _multipart_fields(form: Mapping[str, str], files: Sequence[FilePart]) -> list[tuple[str, Any]]:
    """Return what httpx encodes as multipart, text fields included: with `data=` alone it would send another type."""
    fields: list[tuple[str, Any]] = [(name, (None, text.encode("utf-8", "replace"))) for name, text in form.items()]
    for file in files:
        content = b"".join([chunk async for chunk in file.read()])
        fields.append((file.name, (file.filename, content, file.media_type)))
    return fields


@cache
def tls_context() -> SSLContext:
    """Return the one context of the process: reading the certificates takes 20 ms and some megabytes."""
    return httpx.create_ssl_context(trust_env=False)
