"""New connections: a name is resolved once, its addresses are checked, and the checked addresses are dialed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from ssl import SSLContext, SSLError, create_default_context
from typing import Final, Literal, TypeAlias

import certifi

from broker.net.connection import HttpConnection, Origin
from broker.net.hosts import parse_ip
from broker.net.resolver import Resolver, SystemResolver

MAX_DIALS: Final = 4
"""Addresses of a name that are tried."""
DNS_SECONDS: Final = 5.0
NEXT_DIAL_SECONDS: Final = 0.25
"""Head start of each address over the next one (RFC 8305)."""

SocketDialer: TypeAlias = Callable[[str, int], Awaitable[socket.socket]]
"""Returns a connected, non-blocking TCP socket to an address and port; raises OSError."""
AddressCheck: TypeAlias = Callable[[str, int, Sequence[str]], Sequence[str]]
"""Returns the addresses of a host and port that may be dialed, or raises."""


class ConnectFailed(Exception):
    """No connection: no byte of a request was sent. The message may name addresses."""

    def __init__(self, message: str, at: Literal["name", "connection", "tls", "time-out"]) -> None:
        super().__init__(message)
        self.at = at


async def dial_tcp(address: str, port: int) -> socket.socket:
    """Connect to one address."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


class Dialer:
    """Opens connections to origins."""

    def __init__(
        self,
        *,
        resolve: Resolver | None = None,
        check: AddressCheck = lambda host, port, answers: answers,
        dial: SocketDialer = dial_tcp,
        tls: SSLContext | None = None,
    ) -> None:
        """check: applied to all addresses of a name at once, and to hosts that are addresses."""
        self._resolve = resolve or SystemResolver()
        self._check = check
        self._dial = dial
        self._tls = tls

    async def open(self, origin: Origin, seconds: float) -> HttpConnection:
        """Resolve, connect and do the TLS handshake. seconds: for all of it. Raises `ConnectFailed`, and as `check`."""
        tls = (self._tls or tls_context()) if origin.scheme == "https" else None  # the first time takes a while
        try:
            async with asyncio.timeout(seconds):
                addresses = await self.find_addresses(origin.host, origin.port)
                sock = await self._connect(addresses, origin.port)
                return await self._open_on(sock, origin, tls)
        except TimeoutError:
            raise ConnectFailed("time-out", "time-out") from None

    async def find_addresses(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses to dial. Raises `ConnectFailed`, and as `check`."""
        if parse_ip(host) is not None:
            return self._check(host, port, [host])
        try:
            async with asyncio.timeout(DNS_SECONDS):
                answers = await self._resolve(host, port)
        except TimeoutError:
            raise ConnectFailed(f"cannot resolve {host} in time", "time-out") from None
        except (OSError, UnicodeError) as error:
            raise ConnectFailed(f"cannot resolve {host}: {error}", "name") from None
        return self._check(host, port, answers)

    async def _connect(self, addresses: Sequence[str], port: int) -> socket.socket:
        try:
            if len(addresses) == 1:
                return await self._dial(addresses[0], port)
            return await self._connect_to_first(addresses[:MAX_DIALS], port)
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:
                raise  # ours, not the kernel's
            raise ConnectFailed(error.strerror or str(error) or type(error).__name__, "connection") from None

    async def _connect_to_first(self, addresses: Sequence[str], port: int) -> socket.socket:
        """Return a socket to the first address that answers, of several that are dialed with delays."""
        left, dials = list(addresses), set[asyncio.Task[socket.socket]]()
        connected: list[socket.socket] = []
        error: BaseException = OSError("no address")
        try:
            while not connected and (left or dials):
                if left:
                    dials.add(asyncio.ensure_future(self._dial(left.pop(0), port)))
                timeout = NEXT_DIAL_SECONDS if left else None
                done, dials = await asyncio.wait(dials, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for dial in done:
                    error = dial.exception() or error
                    connected += [] if dial.exception() else [dial.result()]
        finally:
            for dial in dials:
                dial.cancel()
            late = await asyncio.gather(*dials, return_exceptions=True)
            for sock in [*connected[1:], *(one for one in late if isinstance(one, socket.socket))]:
                sock.close()
        if not connected:
            raise error
        return connected[0]

    async def _open_on(self, sock: socket.socket, origin: Origin, tls: SSLContext | None) -> HttpConnection:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: HttpConnection(origin),
                sock=sock,
                ssl=tls,
                server_hostname=origin.host if tls is not None else None,
            )
        except SSLError as error:
            raise ConnectFailed(str(error), "tls") from None
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:
                raise
            raise ConnectFailed(str(error) or "the connection broke", "connection") from None
        return connection


@cache
def tls_context() -> SSLContext:
    """Return the one context of the process: reading the certificates takes 20 ms and some megabytes."""
    context = create_default_context(cafile=certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context
