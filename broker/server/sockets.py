"""Listening sockets, and the error messages for addresses that cannot be bound."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from broker.errors import SettingsError

BACKLOG: Final = 2048
LISTENERS: Final = 16
"""Per listening socket of a process, on uvloop."""
_SO_ATTACH_FILTER: Final = 26
_DROP_SYN: Final = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the flags of the TCP header
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # if SYN alone:
        (0x06, 0, 0, 0),  # drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # else accept it
    )
)
"""A program of the kernel's classic packet filter."""


@dataclass(frozen=True, kw_only=True)
class BindFailure:
    """Explanation of a failed bind."""

    variable: str
    """The environment variable at fault."""
    problem: str
    cure: str


def bind_socket(host: str, port: int, *, is_one_of_many: bool = False) -> socket.socket:
    """Return a listening socket; port 0 takes any free one. Raises `SettingsError` with the cure.

    is_one_of_many: the kernel spreads connections over the listening sockets of several processes.
    """
    with _explained(host, port):
        return open_socket(host, port, is_one_of_many=is_one_of_many)


def reserve_port(host: str, port: int) -> socket.socket:
    """Return a socket that does not listen, and keeps a port for the sockets of several processes.

    Raises `SettingsError` with the cure, also if a broker of several processes has the port already.
    """
    with _explained(host, port):
        with open_socket(host, port) as alone:
            address = alone.getsockname()
        sock = socket.socket(alone.family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if host == "::" and socket.has_dualstack_ipv6():
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        return sock


@contextmanager
def _explained(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        failure = explain_bind_error(host, port, error)
        raise SettingsError(f"{failure.variable}: {failure.problem}; {failure.cure}") from error


def open_socket(host: str, port: int, *, is_one_of_many: bool = False) -> socket.socket:
    """Return a listening socket. Raises OSError or UnicodeError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = host == "::" and socket.has_dualstack_ipv6()
    sock = socket.create_server(
        (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual, reuse_port=is_one_of_many
    )
    # connections inherit it; asyncio would not set it on them, and a response's second packet would wait 40 ms
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def share_listener(sock: socket.socket) -> list[socket.socket]:
    """Return the listening socket and duplicates of it, for one server each.

    uvloop accepts one connection per server and turn of the event loop. A turn of a busy loop takes milliseconds, so
    the last of 64 connections that arrive together would wait a third of a second. The loops of asyncio accept a whole
    backlog; without free descriptors they log each of these attempts, for every server.
    """
    is_asyncio = isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
    return [sock] if is_asyncio else [sock, *(sock.dup() for _ in range(LISTENERS - 1))]


def explain_bind_error(host: str, port: int, error: Exception) -> BindFailure:
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            return BindFailure(
                variable="BROKER_PORT", problem=port_in_use(port), cure="stop it, or choose another (--port)"
            )
        case errno.EACCES:
            return BindFailure(
                variable="BROKER_PORT",
                problem=f"port {port} needs more rights than this process has",
                cure="choose one above 1023 (--port)",
            )
        case _:
            return BindFailure(
                variable="BROKER_HOST",
                problem=f"this machine does not have the address {host}",
                cure="use 127.0.0.1, or 0.0.0.0 for all (--host)",
            )


def port_in_use(port: int) -> str:
    return f"port {port} is taken by another program"


def socket_port(sock: socket.socket) -> int:
    """Return the port that the socket was given."""
    return int(sock.getsockname()[1])


def refuse_handshakes(listener: socket.socket) -> None:
    """Let a listening socket begin no more handshakes. Those that have begun end, and can be accepted.

    A connection that is established between the last accept and the close is reset, with the request that its client
    has sent. A client whose first packet is dropped repeats it after a second: then it is refused, or reaches the
    next process. Linux only; elsewhere handshakes go on until the close.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(_DROP_SYN)
        with suppress(OSError):  # a sandboxed kernel may have no packet filter
            listener.setsockopt(
                socket.SOL_SOCKET,
                _SO_ATTACH_FILTER,
                struct.pack("@HP", len(_DROP_SYN) // 8, ctypes.addressof(program)),
            )
