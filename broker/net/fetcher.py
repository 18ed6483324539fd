"""Requests to URLs that callers and providers name: checked, resolved once, and dialed as checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import anyio
import httpcore

from broker.errors import DownloadError
from broker.net.api_client import CONNECT_SECONDS, USER_AGENT, HttpResponse, StreamedBody, tls_context
from broker.net.hosts import parse_ip
from broker.net.pieces import LimitedBackend, TooManyPieces, limited_chunks
from broker.net.resolver import Resolver, SystemResolver
from broker.net.url_policy import EgressPolicy, ParsedUrl, parse_url

MAX_REDIRECTS: Final = 3
MAX_DIALS: Final = 4
DNS_SECONDS: Final = 5.0
RESPONSE_SECONDS: Final = 30.0
CHUNK_BYTES: Final = 256 * 1024

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_GONE_STATUSES: Final = frozenset({401, 403, 404, 410, 451})
_TRANSPORT_ERRORS: Final = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError)


class Fetcher:
    """HTTP client for URLs from outside, under `EgressPolicy`.

    Every hop of a redirect is checked like the first. TLS verifies the name, not the address. One connection per
    request: bytes that a host sends beyond its response cannot reach the next one. Errors: `EgressBlocked` (nothing
    was sent), `DownloadError("result_gone" | "invalid_result" | "download_failed")`.
    """

    def __init__(
        self,
        *,
        allow: Collection[str] = (),
        max_connections: int = 32,
        resolve: Resolver | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
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
        inner = LimitedBackend(backend or httpcore.AnyIOBackend())
        self._backend = _GuardedBackend(self._policy, resolve or SystemResolver(), inner)
        self._slots = asyncio.Semaphore(max_connections)
        self._total_seconds = total_seconds
        self._min_bytes_per_second = min_bytes_per_second
        self._grace_seconds = grace_seconds

    def check_url(self, url: str) -> ParsedUrl:
        """Return the parsed URL; raise `EgressBlocked` for what can be rejected without a DNS lookup."""
        parsed = parse_url(url)
        self._policy.check_without_dns(parsed)
        return parsed

    @asynccontextmanager
    async def open(self, url: str, *, max_bytes: int) -> AsyncGenerator[AsyncIterator[bytes]]:
        """GET a URL, and yield its body in chunks of 256 KiB or a little more; reading them raises `DownloadError`.

        Leaving the context ends the connection, read to the end or not.
        """
        parsed = self.check_url(url)  # before the wait for a slot
        async with self._slots, AsyncExitStack() as stack:
            deadline = asyncio.get_running_loop().time() + self._total_seconds
            parsed, response = await self._follow_redirects(stack, parsed, deadline)
            size = _announced_size(response)
            if size is not None and size > max_bytes:
                raise DownloadError("invalid_result", f"{parsed}: {size} bytes announced, {max_bytes} allowed")
            yield await stack.enter_async_context(aclosing(self._chunks(parsed, response, max_bytes, deadline)))

    async def post(
        self, url: str, *, content: bytes, headers: Mapping[str, str], timeout: float = 15, max_bytes: int = 65_536
    ) -> HttpResponse:
        """POST to a URL and return the response, whatever its status, without following redirects.

        For webhooks, where the status is what counts: a body that is too long, too slow or cut off is dropped.
        """
        parsed = self.check_url(url)
        async with self._slots, AsyncExitStack() as stack:
            deadline = asyncio.get_running_loop().time() + timeout
            request = self._send_request(parsed, deadline, method="POST", headers=headers, content=content)
            response = await stack.enter_async_context(request)
            chunks = await stack.enter_async_context(aclosing(self._chunks(parsed, response, max_bytes, deadline)))
            body = b""
            with suppress(DownloadError):
                body = b"".join([chunk async for chunk in chunks])
            return HttpResponse(
                status=response.status,
                headers={name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers},
                body=body,
            )

    async def put(self, url: str, body: StreamedBody, *, timeout: float) -> int:
        """PUT a body to a URL and return the status of the response, without following redirects. timeout: seconds."""
        parsed = self.check_url(url)
        async with self._slots:
            deadline = asyncio.get_running_loop().time() + timeout
            headers = {"Content-Type": body.media_type, "Content-Length": str(body.size)}
            async with self._send_request(
                parsed, deadline, method="PUT", headers=headers, content=body.chunks, response_seconds=timeout
            ) as response:
                return response.status

    async def validate(self, url: str, *, dns_seconds: float = 2.0) -> None:
        """Raise `EgressBlocked` for a URL that would be blocked now: an early error for the caller.

        The request itself checks again. A failing or slow name server is not a reason to reject.
        """
        parsed = self.check_url(url)
        if not self._policy.is_allowlisted(parsed.host, parsed.port):
            with suppress(httpcore.ConnectError, TimeoutError):
                async with asyncio.timeout(dns_seconds):
                    await self._backend.resolve_host(parsed.host, parsed.port)

    async def _follow_redirects(
        self, stack: AsyncExitStack, url: ParsedUrl, deadline: float
    ) -> tuple[ParsedUrl, httpcore.Response]:
        """Return the first response that is not a redirect, its connection held open by the stack."""
        for _ in range(MAX_REDIRECTS + 1):
            response = await stack.enter_async_context(self._send_request(url, deadline))
            if response.status not in _REDIRECTS:
                _check_status(url, response)
                return url, response
            await stack.aclose()
            url = url.follow_redirect(_first_header(response, b"location"))
        raise DownloadError("invalid_result", f"{url}: more than {MAX_REDIRECTS} redirects")

    @asynccontextmanager
    async def _send_request(
        self,
        url: ParsedUrl,
        deadline: float,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterator[bytes] = b"",
        response_seconds: float = RESPONSE_SECONDS,
    ) -> AsyncGenerator[httpcore.Response]:
        """Send one checked request over one new connection, closed at the end."""
        self._policy.check_without_dns(url)
        host, scheme = url.host.encode("ascii"), url.scheme.encode("ascii")
        length = {"Content-Length": str(len(content))} if isinstance(content, bytes) and content else {}
        fixed = {"Host": url.authority, "Accept-Encoding": "identity", "Connection": "close", **length}
        connection = httpcore.AsyncHTTPConnection(
            httpcore.Origin(scheme, host, url.port), ssl_context=tls_context(), network_backend=self._backend
        )
        request = httpcore.Request(
            method,
            httpcore.URL(scheme=scheme, host=host, port=url.port, target=url.target.encode("ascii")),
            headers=[*{"User-Agent": USER_AGENT, "Accept": "*/*", **(headers or {}), **fixed}.items()],
            content=content,
            extensions={"timeout": {"connect": CONNECT_SECONDS}},
        )
        try:
            with _download_errors(url):
                now = asyncio.get_running_loop().time()
                async with asyncio.timeout_at(min(deadline, now + response_seconds)):
                    response = await connection.handle_async_request(request)
            yield response
        finally:
            with anyio.CancelScope(shield=True):
                await connection.aclose()

    async def _chunks(
        self, url: ParsedUrl, response: httpcore.Response, max_bytes: int, deadline: float
    ) -> AsyncGenerator[bytes]:
        """Yield the body in chunks worth a thread call each; h11 raises for a body of another length than announced."""
        loop = asyncio.get_running_loop()
        received, waited = 0, 0.0  # seconds waited for the server: the time of our reader between chunks does not count
        async with aclosing(limited_chunks(response)) as stream:
            while True:
                started, parts, length = loop.time(), [], 0
                limit = started - waited + self._grace_seconds
                with _download_errors(url):
                    async with asyncio.timeout_at(
                        min(deadline, limit + received / self._min_bytes_per_second)
                    ) as timer:
                        async for part in stream:
                            parts.append(part)
                            length += len(part)
                            received += len(part)
                            if received > max_bytes:
                                raise DownloadError("invalid_result", f"{url}: more than {max_bytes} bytes")
                            if length >= CHUNK_BYTES:
                                break
                            timer.reschedule(min(deadline, limit + received / self._min_bytes_per_second))
                if not parts:
                    return
                waited += loop.time() - started
                yield b"".join(parts)


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Network backend that resolves a name once, blocks it if one address is bad, and dials the checked addresses."""

    def __init__(self, policy: EgressPolicy, resolve: Resolver, inner: httpcore.AsyncNetworkBackend) -> None:
        self._policy = policy
        self._resolve = resolve
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        *others, last = (await self.resolve_host(host, port))[:MAX_DIALS]
        share = (timeout or CONNECT_SECONDS) / (len(others) + 1)
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._inner.connect_tcp(address, port, share, local_address, socket_options)
        return await self._inner.connect_tcp(last, port, share, local_address, socket_options)

    async def resolve_host(self, host: str, port: int) -> list[str]:
        """Return the addresses to dial; raise `EgressBlocked` if one is bad, ConnectError if there is no answer."""
        if parse_ip(host) is not None:
            return self._policy.resolve(host, port, [host])
        try:
            async with asyncio.timeout(DNS_SECONDS):
                answers = await self._resolve(host, port)
        except (OSError, UnicodeError) as exc:
            raise httpcore.ConnectError(f"cannot resolve {host}: {exc}") from None
        return self._policy.resolve(host, port, answers)


@contextmanager
def _download_errors(url: ParsedUrl) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise DownloadError("download_failed", f"{url}: too slow") from None
    except TooManyPieces as exc:
        raise DownloadError("download_failed", f"{url}: {exc}") from None
    except _TRANSPORT_ERRORS as exc:
        raise DownloadError("download_failed", f"{url}: {type(exc).__name__}") from None


def _check_status(url: ParsedUrl, response: httpcore.Response) -> None:
    if response.status in _GONE_STATUSES:
        raise DownloadError("result_gone", f"{url}: HTTP {response.status}")
    if response.status != 200:
        raise DownloadError("download_failed", f"{url}: HTTP {response.status}")
    if _first_header(response, b"content-encoding").lower() not in ("", "identity"):
        raise DownloadError("invalid_result", f"{url}: the body is encoded although identity was requested")


def _first_header(response: httpcore.Response, name: bytes) -> str:
    """Return the first header of that name, or "". Non-ASCII is read as UTF-8, as browsers read a Location."""
    values = (value for key, value in response.headers if key.lower() == name)
    return next(values, b"").decode("utf-8", "replace")


def _announced_size(response: httpcore.Response) -> int | None:
    if _first_header(response, b"transfer-encoding"):
        return None
    length = _first_header(response, b"content-length")
    return int(length) if length.isdecimal() else None
