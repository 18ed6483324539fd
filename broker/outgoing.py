"""How we leave the house: `ApiClient` to providers we chose, `Fetcher` to addresses somebody else chose.

The only module that knows httpx and httpcore. No proxies, cookies, netrc or redirects behind our back, no decoding
(a few hundred kilobytes can inflate to a quarter of a gigabyte), one request per call, never a retry.
Messages hold no query, header or body: they may be secrets, so library errors are not chained (`from None`).
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from ssl import SSLContext, SSLError
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, cast

import anyio
import httpcore
import httpx

from broker.addresses import Link, Policy, check_url, is_ip, read_link, redact_url
from broker.errors import FetchError, NotSent, ProviderError
from webhooks.strict_json import read_json

__all__ = [
    "Answer",
    "ApiClient",
    "Download",
    "Fetcher",
    "FilePart",
    "Form",
    "Resolver",
    "Stream",
    "SystemResolver",
    "check_url",
    "redact_url",
]

CONNECT_SECONDS: Final = 10.0
"""Longest wait for a free connection, and again for DNS, TCP and TLS together."""

KEEPALIVE_SECONDS: Final = 5.0
"""Short, so that an order rarely rides on a connection the provider is about to close."""

MAX_CONCURRENT_UPLOADS: Final = 4
"""A file is whole in memory while it is uploaded."""

USER_AGENT: Final = "nano-banana-broker"

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

Form: TypeAlias = Mapping[str, "str | Sequence[str]"]
"""Text fields of a multipart form; a sequence is a field that is repeated."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, whole. headers: lower-case names."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """The body as JSON; `ProviderError` for anything else, quoting none of it."""
        try:
            return read_json(self.body, max_depth=64, repair_surrogates=True)
        except ValueError:
            raise ProviderError(f"HTTP {self.status} with {len(self.body)} bytes that are not sound JSON") from None


@dataclass(frozen=True, kw_only=True)
class Stream:
    """An answer whose body is still on its way. chunks: as they arrive; raises `ProviderError`."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    chunks: AsyncIterator[bytes] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """One file of a multipart form."""

    name: str
    filename: str
    media_type: str
    read: Callable[[], AsyncIterator[bytes]]
    """Streams the content; called when an upload slot is free."""


class ApiClient:
    """Towards one provider's API, for the life of the process. The address is the operator's, hence trusted.

    timeout: seconds for request and answer once connected. Redirects are answers like any other.
    """

    def __init__(self, *, timeout: float, max_connections: int, max_answer_bytes: int = 8 * 2**20) -> None:
        limits = httpx.Limits(max_connections=max_connections, keepalive_expiry=KEEPALIVE_SECONDS)
        # The bare transport: a client on top of it would keep cookies and log addresses with their queries.
        self._transport = httpx.AsyncHTTPTransport(verify=_tls(), trust_env=False, limits=limits)
        self._slots = asyncio.Semaphore(max_connections)  # the pool's own queue slows with each one waiting
        self._upload_slots = asyncio.Semaphore(MAX_CONCURRENT_UPLOADS)
        self._timeout = timeout
        self._max_answer_bytes = max_answer_bytes

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = _NO_HEADERS,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        content: AsyncIterator[bytes] | bytes | None = None,
        form: Form | None = None,
        files: Sequence[FilePart] = (),
        timeout: float | None = None,
    ) -> Answer:
        """Send one request, once. `form` and `files` make a multipart body; at most four such requests run at once.

        timeout: seconds, where less than the client's own is enough.

        Raises `NotSent` when no byte of the request can have left, `ProviderError` for all that may go wrong after.
        """
        what = f"{method} {redact_url(url)}"
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        if form is None and not files:
            request = _build(what, method, url, headers=headers, params=params, json=json, content=content)
            return await self._send(what, request, seconds)
        async with self._upload_slots:
            fields = await _multipart_fields(form or {}, files)
            request = _build(what, method, url, headers=headers, params=params, files=fields)
            return await self._send(what, request, seconds)

    async def _send(self, what: str, request: httpx.Request, seconds: float) -> Answer:
        connect = min(seconds, CONNECT_SECONDS)
        request.extensions["timeout"] = {"pool": connect, "connect": connect, "read": seconds, "write": seconds}
        async with self._slot(what, connect):
            with _provider_trouble(what):
                # Pool, TCP and TLS have their own, telling time-outs; this one must not come before theirs.
                async with asyncio.timeout(3 * connect + seconds) as patience:
                    request.extensions["trace"] = _from_sending(patience, seconds)
                    return await self._exchange(what, request)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = _NO_HEADERS,
        params: Mapping[str, str] | None = None,
        silence: float,
    ) -> AsyncGenerator[Stream]:
        """Send one request, once, and read its answer as it comes, however long that takes and however much it is.

        silence: seconds without a byte after which the other side is gone. Raises as `request` does. Leaving the
        context ends the connection unless the answer was read to its end.
        """
        what = f"{method} {redact_url(url)}"
        request = _build(what, method, url, headers=headers, params=params)
        request.extensions["timeout"] = {
            "pool": CONNECT_SECONDS,
            "connect": CONNECT_SECONDS,
            "read": silence,
            "write": silence,
        }
        async with self._slot(what, CONNECT_SECONDS):
            with _provider_trouble(what):
                async with asyncio.timeout(3 * CONNECT_SECONDS + silence):
                    response = await self._transport.handle_async_request(request)
            try:
                _refuse_encoded(what, response)
                async with aclosing(_chunks(what, response)) as chunks:
                    yield Stream(status=response.status_code, headers=dict(response.headers), chunks=chunks)
            finally:
                await response.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()

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

    async def _exchange(self, what: str, request: httpx.Request) -> Answer:
        response = await self._transport.handle_async_request(request)
        try:
            _refuse_encoded(what, response)
            return Answer(
                status=response.status_code,
                headers=dict(response.headers),
                body=await self._read(what, response),
            )
        finally:
            await response.aclose()

    async def _read(self, what: str, response: httpx.Response) -> bytes:
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > self._max_answer_bytes:
                raise ProviderError(f"{what}: the answer is longer than {self._max_answer_bytes} bytes")
        return bytes(body)


def _refuse_encoded(what: str, response: httpx.Response) -> None:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProviderError(f"{what}: the answer is encoded although we asked for it plain")


async def _chunks(what: str, response: httpx.Response) -> AsyncGenerator[bytes]:
    stream = cast(AsyncGenerator[bytes, None], response.aiter_raw())
    async with aclosing(stream) as parts:
        with _provider_trouble(what):
            async for part in parts:
                yield part


def _build(
    what: str,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    params: Mapping[str, str] | None,
    json: Any = None,
    content: AsyncIterator[bytes] | bytes | None = None,
    files: Sequence[tuple[str, Any]] | None = None,
) -> httpx.Request:
    """The request, or `NotSent(permanent)`: whatever cannot be written down was certainly not sent."""
    for name, value in headers.items():
        # h11 would refuse it too, but quotes the value – a key with a line break in it – in its message.
        if not value.isascii() or not value.isprintable():
            raise NotSent(f"{what}: the header {name} has characters that no header may have", permanent=True)
    try:
        address = httpx.URL(url).copy_merge_params(params or {})
        all_headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        request = httpx.Request(method, address, headers=all_headers, json=json, content=content, files=files)
    except (httpx.InvalidURL, ValueError):
        raise NotSent(f"{what}: the request cannot be written down", permanent=True) from None
    if address.scheme not in ("http", "https") or not address.host or not 0 < (address.port or 80) < 65536:
        raise NotSent(f"{what}: the address needs http:// or https://, a host and a possible port", permanent=True)
    return request


def _from_sending(patience: asyncio.Timeout, seconds: float) -> Callable[[str, Any], Awaitable[None]]:
    """Start the caller's seconds when the first byte leaves: read time-outs alone would let an answer drip for ever."""

    async def hear(event: str, _: Any) -> None:
        if event == "http11.send_request_headers.started":
            patience.reschedule(asyncio.get_running_loop().time() + seconds)

    return hear


@contextmanager
def _provider_trouble(what: str) -> Iterator[None]:
    """Tell "certainly not sent" from "who knows": only the first may be repeated without a second bill."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
        raise NotSent(f"{what}: no connection ({str(exc) or type(exc).__name__})", at=_how_far(exc)) from None
    except (httpx.TimeoutException, TimeoutError):
        raise ProviderError(f"{what}: no whole answer in time") from None
    except httpx.NetworkError:
        raise ProviderError(f"{what}: the connection broke") from None
    except httpx.HTTPError:
        raise ProviderError(f"{what}: the answer is cut short or is not HTTP") from None


def _how_far(error: BaseException) -> Literal["name", "connection", "tls", "time-out"]:
    """What stood in the way of a connection: each has a cure of its own."""
    if isinstance(error, httpx.TimeoutException):
        return "time-out"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "name"
        if isinstance(cause, SSLError):
            return "tls"
        cause = cause.__cause__ or cause.__context__
    return "connection"


async def _multipart_fields(form: Form, files: Sequence[FilePart]) -> list[tuple[str, Any]]:
    """Return what httpx encodes as multipart, text fields included: with `data=` alone it would send another type."""
    fields: list[tuple[str, Any]] = []
    for name, given in form.items():
        texts = (given,) if isinstance(given, str) else given
        fields += [(name, (None, text.encode("utf-8", "replace"))) for text in texts]
    for file in files:
        content = b"".join([chunk async for chunk in file.read()])
        fields.append((file.name, (file.filename, content, file.media_type)))
    return fields


MAX_REDIRECTS: Final = 3
MAX_DIALS: Final = 4
DNS_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0
READ_BYTES: Final = 256 * 1024
CHUNK_BYTES: Final = 256 * 1024

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_GONE: Final = frozenset({401, 403, 404, 410, 451})
_TROUBLE: Final = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError)

Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to the addresses of the host; OSError when there are none."""


@dataclass(frozen=True, kw_only=True)
class Download:
    """A body on its way. url: where it came from in the end, query included. media_type: lower case, no parameters.
    size: Content-Length, if given. chunks: 256 KiB or a little more each; raises `FetchError`."""

    url: str = field(repr=False)
    media_type: str | None
    size: int | None
    chunks: AsyncIterator[bytes] = field(repr=False)


class SystemResolver:
    """getaddrinfo in daemon threads of its own: a slow name server holds up neither file writes nor the way out."""

    def __init__(self, threads: int = 8) -> None:
        self._free = asyncio.Semaphore(threads)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def deliver(found: Sequence[str] | Exception) -> None:
            self._free.release()  # only now: a lookup nobody waits for any more still holds its thread
            if answer.done():
                return
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def look_up() -> None:
            found = _getaddrinfo(host, port)
            with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(deliver, found)

        threading.Thread(target=look_up, name="resolve", daemon=True).start()
        return await answer


def _getaddrinfo(host: str, port: int) -> Sequence[str] | Exception:
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as exc:
        return exc


class Fetcher:
    """To addresses that came from outside, under `addresses.Policy`: checked, resolved once, and dialled as checked.

    Every hop of a redirect is checked like the first. TLS verifies the name, not the address. One connection per
    request: nothing that a host sends beyond its answer can reach the next one. Errors: `EgressRefused` (nothing was
    sent), `FetchError("result_gone" | "invalid_result" | "download_failed")`.
    allow, deny, ports, exemption: see `Policy`. total_seconds: for one download, redirects included, waiting for a slot
    not.
    min_bytes_per_second: on average of the time spent waiting for the body, after grace_seconds.
    """

    def __init__(
        self,
        *,
        allow: Collection[str] = (),
        deny: Collection[str] = (),
        max_connections: int = 32,
        resolve: Resolver | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
        total_seconds: float = 120,
        min_bytes_per_second: float = 10_000,
        grace_seconds: float = 5,
        ports: Collection[int] = (80, 443),
        exemption: str = "BROKER_DOWNLOAD_ALLOW",
    ) -> None:
        self._policy = Policy(allow=allow, deny=deny, ports=ports, exemption=exemption)
        self._backend = _GuardedBackend(self._policy, resolve or SystemResolver(), backend or httpcore.AnyIOBackend())
        self._tls = _tls()
        self._slots = asyncio.Semaphore(max_connections)
        self._total_seconds = total_seconds
        self._min_bytes_per_second = min_bytes_per_second
        self._grace_seconds = grace_seconds

    def check(self, url: str) -> Link:
        """The address taken apart, or what can be said against it without asking a name server."""
        link = read_link(url)
        self._policy.check(link)
        return link

    @asynccontextmanager
    async def open(self, url: str, *, max_bytes: int) -> AsyncGenerator[Download]:
        """GET an address. Leaving the context ends the connection, read to the end or not."""
        link = self.check(url)  # before the queue: what is refused is refused at once
        async with self._slots, AsyncExitStack() as stack:
            deadline = asyncio.get_running_loop().time() + self._total_seconds
            link, response = await self._follow(stack, link, deadline)
            body = self._body(link, response, max_bytes, deadline)
            chunks = await stack.enter_async_context(aclosing(body.chunks()))
            kind = _header(response, b"content-type").partition(";")[0].strip().lower()
            yield Download(url=link.url, media_type=kind or None, size=body.size, chunks=chunks)

    async def post(
        self, url: str, *, content: bytes, headers: Mapping[str, str], timeout: float = 15, max_bytes: int = 65_536
    ) -> Answer:
        """POST to a guarded address, for webhooks to callers. Redirects are not followed; any status is an answer.

        The status is what counts: a body that is too long, too slow or cut off is dropped.
        """
        link = read_link(url)
        self._policy.check(link)
        async with self._slots, AsyncExitStack() as stack:
            deadline = asyncio.get_running_loop().time() + timeout
            response = await stack.enter_async_context(
                self._ask(link, deadline, method="POST", headers=headers, content=content)
            )
            return Answer(
                status=response.status,
                headers={name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers},
                body=await self._whole(link, response, max_bytes, deadline),
            )

    async def vet(self, url: str, *, patience: float = 2.0) -> None:
        """Raise `EgressRefused` for an address that would be refused now: for the moment somebody hands it in.

        A courtesy, not the guard, which looks again. A name server in trouble is no reason to refuse.
        """
        link = read_link(url)
        self._policy.check(link)
        if not self._policy.exempts(link.host, link.port):
            await self._backend.vet(link.host, link.port, patience)

    async def aclose(self) -> None:
        """Nothing stays open between requests; here so that both clients end alike."""

    async def _whole(self, link: Link, response: httpcore.Response, max_bytes: int, deadline: float) -> bytes:
        """The body, or nothing if it does not come as it should."""
        try:
            async with aclosing(self._body(link, response, max_bytes, deadline).chunks()) as chunks:
                return b"".join([chunk async for chunk in chunks])
        except FetchError:
            return b""

    async def _follow(self, stack: AsyncExitStack, link: Link, deadline: float) -> tuple[Link, httpcore.Response]:
        """The first answer that is no redirect, its connection held open by the stack."""
        for _ in range(MAX_REDIRECTS + 1):
            response = await stack.enter_async_context(self._ask(link, deadline))
            if response.status not in _REDIRECTS:
                _check_answer(link, response)
                return link, response
            await stack.aclose()
            link = link.follow(_header(response, b"location"))
        raise FetchError("invalid_result", f"{link}: more than {MAX_REDIRECTS} redirects")

    @asynccontextmanager
    async def _ask(
        self,
        link: Link,
        deadline: float,
        *,
        method: str = "GET",
        headers: Mapping[str, str] = _NO_HEADERS,
        content: bytes = b"",
    ) -> AsyncGenerator[httpcore.Response]:
        """One checked request over one new connection, closed at the end."""
        self._policy.check(link)
        host, scheme = link.host.encode("ascii"), link.scheme.encode("ascii")
        connection = httpcore.AsyncHTTPConnection(
            httpcore.Origin(scheme, host, link.port), ssl_context=self._tls, network_backend=self._backend
        )
        request = httpcore.Request(
            method,
            httpcore.URL(scheme=scheme, host=host, port=link.port, target=link.target.encode("ascii")),
            headers=_guarded_headers(link, headers, content),
            content=content,
            extensions={"timeout": {"connect": CONNECT_SECONDS}},
        )
        try:
            with _fetch_trouble(link):
                now = asyncio.get_running_loop().time()
                async with asyncio.timeout_at(min(deadline, now + ANSWER_SECONDS)):
                    response = await connection.handle_async_request(request)
            yield response
        finally:
            with anyio.CancelScope(shield=True):
                await connection.aclose()

    def _body(self, link: Link, response: httpcore.Response, max_bytes: int, deadline: float) -> _Body:
        return _Body(
            link=link,
            response=response,
            max_bytes=max_bytes,
            deadline=deadline,
            grace=self._grace_seconds,
            rate=self._min_bytes_per_second,
        )


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Where names become addresses: asks once, refuses all if one is bad, and dials the very addresses it checked."""

    def __init__(self, policy: Policy, resolve: Resolver, inner: httpcore.AsyncNetworkBackend) -> None:
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
        *others, last = self._policy.admit(host, port, await self._ask_for(host, port))[:MAX_DIALS]
        share = (timeout or CONNECT_SECONDS) / (len(others) + 1)
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return _WideStream(await self._inner.connect_tcp(address, port, share, local_address, socket_options))
        return _WideStream(await self._inner.connect_tcp(last, port, share, local_address, socket_options))

    async def vet(self, host: str, port: int, patience: float) -> None:
        """Whether the name leads where we go just now; what it cannot tell in time is no refusal."""
        with suppress(httpcore.ConnectError, TimeoutError):
            async with asyncio.timeout(patience):
                self._policy.admit(host, port, await self._ask_for(host, port))

    async def _ask_for(self, host: str, port: int) -> Sequence[str]:
        if is_ip(host):
            return [host]
        try:
            async with asyncio.timeout(DNS_SECONDS):
                return await self._resolve(host, port)
        except (OSError, UnicodeError) as exc:
            raise httpcore.ConnectError(f"cannot resolve {host}: {exc}") from None


class _WideStream(httpcore.AsyncNetworkStream):
    """httpcore reads 64 KiB at a time; asyncio has 256 KiB ready, and cutting it up costs a copy and a turn each."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max(max_bytes, READ_BYTES), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return _WideStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:
            # httpcore forgets the socket when it is canceled in the middle of a handshake.
            with anyio.CancelScope(shield=True):
                await self._inner.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Body:
    """A response body as chunks worth a thread call each, with an end to our patience."""

    def __init__(
        self, *, link: Link, response: httpcore.Response, max_bytes: int, deadline: float, grace: float, rate: float
    ) -> None:
        self.size = _announced(response)
        if self.size is not None and self.size > max_bytes:
            raise FetchError("invalid_result", f"{link}: {self.size} bytes announced, {max_bytes} allowed")
        self._link = link
        self._response = response
        self._max_bytes = max_bytes
        self._deadline = deadline
        self._grace = grace
        self._rate = rate
        self._received = 0
        self._waited = 0.0  # only for the other side: what the caller does between chunks is not the server's fault

    async def chunks(self) -> AsyncGenerator[bytes]:
        """A body of another length than announced ends in an error of h11."""
        stream = cast(AsyncGenerator[bytes, None], self._response.aiter_stream())
        async with aclosing(stream) as parts:
            while chunk := await self._next(parts):
                yield chunk

    async def _next(self, parts: AsyncIterator[bytes]) -> bytes:
        """The next chunk; empty at the end of the body."""
        loop = asyncio.get_running_loop()
        began, held, length = loop.time(), [], 0
        with _fetch_trouble(self._link):
            async with asyncio.timeout_at(self._until(began)) as patience:
                async for part in parts:
                    held.append(self._count(part))
                    length += len(part)
                    if length >= CHUNK_BYTES:
                        break
                    patience.reschedule(self._until(began))
        self._waited += loop.time() - began
        return b"".join(held)

    def _until(self, began: float) -> float:
        """When to give up if nothing more arrives."""
        return min(self._deadline, began - self._waited + self._grace + self._received / self._rate)

    def _count(self, part: bytes) -> bytes:
        self._received += len(part)
        if self._received > self._max_bytes:
            raise FetchError("invalid_result", f"{self._link}: more than {self._max_bytes} bytes")
        return part


@contextmanager
def _fetch_trouble(link: Link) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise FetchError("download_failed", f"{link}: too slow") from None
    except _TROUBLE as exc:
        raise FetchError("download_failed", f"{link}: {type(exc).__name__}") from None


def _check_answer(link: Link, response: httpcore.Response) -> None:
    if response.status in _GONE:
        raise FetchError("result_gone", f"{link}: HTTP {response.status}")
    if response.status != 200:
        raise FetchError("download_failed", f"{link}: HTTP {response.status}")
    if _header(response, b"content-encoding").lower() not in ("", "identity"):
        raise FetchError("invalid_result", f"{link}: the body is encoded although we asked for it plain")


def _guarded_headers(link: Link, headers: Mapping[str, str], content: bytes) -> list[tuple[str, str]]:
    length = {"Content-Length": str(len(content))} if content else {}
    ours = {"Host": link.authority, "Accept-Encoding": "identity", "Connection": "close", **length}
    return list({"User-Agent": USER_AGENT, "Accept": "*/*", **headers, **ours}.items())


def _header(response: httpcore.Response, name: bytes) -> str:
    """The first header of that name, or nothing. Not ASCII is read as UTF-8, as browsers read a Location."""
    values = (value for key, value in response.headers if key.lower() == name)
    return next(values, b"").decode("utf-8", "replace")


def _announced(response: httpcore.Response) -> int | None:
    if _header(response, b"transfer-encoding"):
        return None
    length = _header(response, b"content-length")
    return int(length) if length.isdecimal() else None


@cache
def _tls() -> SSLContext:
    """One for all: reading the certificates takes 20 ms and some megabytes."""
    return httpx.create_ssl_context(trust_env=False)
