"""Requests to URLs that callers and providers name: checked, resolved once, and dialed as checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from ssl import SSLContext
from typing import Final

from broker.errors import DownloadError
from broker.net.api_client import CONNECT_SECONDS, HttpResponse
from broker.net.connection import HttpConnection, Origin
from broker.net.connection_pool import ConnectionPool
from broker.net.dialing import ConnectFailed, Dialer, SocketDialer, dial_tcp
from broker.net.http_request import HttpRequest, InvalidHeader, StreamedBody, build_request
from broker.net.pieces import TooManyPieces
from broker.net.resolver import Resolver
from broker.net.response_parser import HttpFailure, ResponseParser
from broker.net.url_policy import EgressPolicy, ParsedUrl, parse_url

MAX_REDIRECTS: Final = 3
RESPONSE_SECONDS: Final = 30.0
CHUNK_BYTES: Final = 256 * 1024
RATE_CHECK_SECONDS: Final = 0.05
"""Least time between two checks of the rate of a slow server."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_GONE_STATUSES: Final = frozenset({401, 403, 404, 410, 451})
_CLOSE: Final = {"Connection": "close"}
_NO_LIMIT: Final = nullcontext()
_FAILURES: Final = (TimeoutError, HttpFailure, TooManyPieces)
"""Errors of a connection."""
_CONNECT_REASONS: Final = {
    "name": "the name cannot be resolved",
    "connection": "no connection",
    "tls": "no TLS connection",
    "time-out": "no connection in time",
}


class Fetcher:
    """HTTP client for URLs from outside, under `EgressPolicy`.

    Every hop of a redirect is checked like the first. TLS verifies the name, not the address. Downloads share
    connections; one is reused only for the scheme, host and port for which its address was checked, and closed at the
    first byte beyond its response. Errors: `EgressBlocked` (nothing was sent),
    `DownloadError("result_gone" | "invalid_result" | "download_failed")`.
    """

    def __init__(
        self,
        *,
        allow: Collection[str] = (),
        max_connections: int = 32,
        resolve: Resolver | None = None,
        dial: SocketDialer = dial_tcp,
        tls: SSLContext | None = None,
        total_seconds: float = 120,
        min_bytes_per_second: float = 10_000,
        grace_seconds: float = 5,
        ports: Collection[int] = (80, 443),
        exemption: str = "BROKER_DOWNLOAD_ALLOW",
    ) -> None:
        """allow, ports, exemption: see `EgressPolicy`.

        total_seconds: for one download, redirects included, waiting for a slot excluded.
        min_bytes_per_second: average over the time spent waiting for the body, after grace_seconds.
        """
        self._policy = EgressPolicy(allow=allow, ports=ports, exemption=exemption)
        self._pool = ConnectionPool(Dialer(resolve=resolve, check=self._policy.resolve, dial=dial, tls=tls))
        self._slots = asyncio.Semaphore(max_connections)
        self._total_seconds = total_seconds
        self._min_bytes_per_second = min_bytes_per_second
        self._grace_seconds = grace_seconds

    async def aclose(self) -> None:
        await self._pool.aclose()

    def check_url(self, url: str) -> ParsedUrl:
        """Return the parsed URL; raise `EgressBlocked` for what can be rejected without a DNS lookup."""
        parsed = parse_url(url)
        self._policy.check_without_dns(parsed)
        return parsed

    @asynccontextmanager
    async def open(self, url: str, *, max_bytes: int) -> AsyncGenerator[AsyncIterator[bytes]]:
        """GET a URL, and yield its body in chunks of 256 KiB or a little more; reading them raises `DownloadError`.

        Leaving the context ends the connection unless it was read to the end.
        """
        parsed = self.check_url(url)  # before the wait for a slot
        async with self._slots:
            deadline = asyncio.get_running_loop().time() + self._total_seconds
            parsed, connection = await self._follow_redirects(parsed, deadline)
            try:
                _check_status(parsed, connection.response)
                size = _announced_size(connection.response)
                if size is not None and size > max_bytes:
                    raise DownloadError("invalid_result", f"{parsed}: {size} bytes announced, {max_bytes} allowed")
                async with aclosing(self._chunks(parsed, connection, max_bytes, deadline)) as chunks:
                    yield chunks
            finally:
                self._pool.release(connection)

    async def post(
        self, url: str, *, content: bytes, headers: Mapping[str, str], timeout: float = 15, max_bytes: int = 65_536
    ) -> HttpResponse:
        """POST to a URL and return the response, whatever its status, without following redirects.

        For webhooks, where the status is what counts: a body that is too long, too slow or cut off is dropped.
        """
        parsed = self.check_url(url)
        async with self._slots:
            deadline = asyncio.get_running_loop().time() + timeout
            request = _build_request("POST", parsed, {**headers, **_CLOSE}, content)
            async with self._send_alone(parsed, request, deadline) as connection:
                body = b""
                with suppress(DownloadError):
                    chunks = self._chunks(parsed, connection, max_bytes, deadline)
                    body = b"".join([chunk async for chunk in chunks])
                response = connection.response
                return HttpResponse(status=response.status, headers=response.header_map(), body=body)

    async def put(self, url: str, body: StreamedBody, *, timeout: float) -> int:
        """PUT a body to a URL and return the status of the response, without following redirects. timeout: seconds."""
        parsed = self.check_url(url)
        async with self._slots:
            deadline = asyncio.get_running_loop().time() + timeout
            request = _build_request("PUT", parsed, {"Content-Type": body.media_type, **_CLOSE}, body)
            async with self._send_alone(parsed, request, deadline, response_seconds=timeout) as connection:
                return connection.response.status

    async def validate(self, url: str, *, dns_seconds: float = 2.0) -> None:
        """Raise `EgressBlocked` for a URL that would be blocked now: an early error for the caller.

        The request itself checks again. A failing or slow name server is not a reason to reject.
        """
        parsed = self.check_url(url)
        if not self._policy.is_allowlisted(parsed.host, parsed.port):
            with suppress(ConnectFailed, TimeoutError):
                async with asyncio.timeout(dns_seconds):
                    await self._pool.dialer.find_addresses(parsed.host, parsed.port)

    async def _follow_redirects(self, url: ParsedUrl, deadline: float) -> tuple[ParsedUrl, HttpConnection]:
        """Return the connection with the first response that is not a redirect; release it afterwards."""
        for _ in range(MAX_REDIRECTS + 1):
            connection = await self._get(url, deadline)
            if connection.response.status not in _REDIRECTS:
                return url, connection
            self._pool.release(connection)
            url = url.follow_redirect(connection.response.first_header(b"location"))
            self._policy.check_without_dns(url)
        raise DownloadError("invalid_result", f"{url}: more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: ParsedUrl, deadline: float) -> HttpConnection:
        """Send a GET, once more on a new connection if a kept one ends before the response: a GET may be repeated."""
        request = _build_request("GET", url, {})
        connection = await self._connect(url, deadline)
        try:
            return await self._send_request(url, connection, request, deadline)
        except DownloadError:
            if not (connection.is_reused and connection.ended_unanswered):
                raise
        connection = await self._connect(url, deadline, is_new=True)
        return await self._send_request(url, connection, request, deadline)

    @asynccontextmanager
    async def _send_alone(
        self, url: ParsedUrl, request: HttpRequest, deadline: float, response_seconds: float = RESPONSE_SECONDS
    ) -> AsyncGenerator[HttpConnection]:
        """Send a request that must not be repeated, over a connection of its own."""
        connection = await self._connect(url, deadline, is_new=True)
        try:
            yield await self._send_request(url, connection, request, deadline, response_seconds)
        finally:
            connection.close()

    async def _connect(self, url: ParsedUrl, deadline: float, *, is_new: bool = False) -> HttpConnection:
        """Return a connection to a URL that was checked."""
        seconds = min(CONNECT_SECONDS, deadline - asyncio.get_running_loop().time())
        try:
            return await self._pool.acquire(Origin(url.scheme, url.host, url.port), seconds, is_new=is_new)
        except ConnectFailed as error:
            raise DownloadError("download_failed", f"{url}: {_CONNECT_REASONS[error.at]}") from None

    async def _send_request(
        self,
        url: ParsedUrl,
        connection: HttpConnection,
        request: HttpRequest,
        deadline: float,
        response_seconds: float = RESPONSE_SECONDS,
    ) -> HttpConnection:
        """Send a request, and return its connection when the head of the response has arrived."""
        seconds = min(deadline - asyncio.get_running_loop().time(), response_seconds)
        try:
            # the expiry of a connection does not end the wait for a part of a streamed body
            async with _NO_LIMIT if isinstance(request.body, bytes) else asyncio.timeout(seconds):
                connection.expire_after(seconds)
                await connection.send(request)
                connection.stop_expiry()
        except BaseException as error:
            connection.close()
            if isinstance(error, _FAILURES):
                raise _download_error(url, error) from None
            raise
        return connection

    async def _chunks(
        self, url: ParsedUrl, connection: HttpConnection, max_bytes: int, deadline: float
    ) -> AsyncGenerator[bytes]:
        """Yield the body in chunks worth a thread call each."""
        loop = asyncio.get_running_loop()
        waited = 0.0  # seconds waited for the server: the time of our reader between chunks does not count
        while True:
            started = loop.time()
            try:
                part = await self._read_chunk(connection, started - waited, deadline)
            except _FAILURES as error:
                raise _download_error(url, error) from None
            waited += loop.time() - started
            if connection.response.received_bytes > max_bytes:
                raise DownloadError("invalid_result", f"{url}: more than {max_bytes} bytes")
            if part:
                yield part
            if not part or connection.response.is_read:
                return

    async def _read_chunk(self, connection: HttpConnection, begun: float, deadline: float) -> bytes:
        """Return the next chunk; raise TimeoutError at the deadline, or below the least rate since `begun`."""
        if connection.can_read(CHUNK_BYTES):  # a timer costs more than the read
            return await connection.read(CHUNK_BYTES)
        limit = 0.0
        while True:
            allowed = begun + self._grace_seconds + connection.response.received_bytes / self._min_bytes_per_second
            now = asyncio.get_running_loop().time()
            if limit and (allowed <= now or deadline <= now):
                raise TimeoutError
            limit = min(deadline, max(allowed, now + RATE_CHECK_SECONDS) if limit else allowed)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(limit):
                    return await connection.read(CHUNK_BYTES)


def _build_request(
    method: str, url: ParsedUrl, headers: Mapping[str, str], body: bytes | StreamedBody = b""
) -> HttpRequest:
    try:
        return build_request(method, url, headers, body)
    except InvalidHeader as error:
        raise DownloadError("download_failed", f"{url}: {error}") from None


def _download_error(url: ParsedUrl, error: Exception) -> DownloadError:
    return DownloadError("download_failed", f"{url}: {'too slow' if isinstance(error, TimeoutError) else error}")


def _check_status(url: ParsedUrl, response: ResponseParser) -> None:
    if response.status in _GONE_STATUSES:
        raise DownloadError("result_gone", f"{url}: HTTP {response.status}")
    if response.status != 200:
        raise DownloadError("download_failed", f"{url}: HTTP {response.status}")
    if response.first_header(b"content-encoding").lower() not in ("", "identity"):
        raise DownloadError("invalid_result", f"{url}: the body is encoded although identity was requested")


def _announced_size(response: ResponseParser) -> int | None:
    if response.first_header(b"transfer-encoding"):
        return None
    length = response.first_header(b"content-length")
    return int(length) if length.isdecimal() else None
