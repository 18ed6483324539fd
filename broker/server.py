"""uvicorn as we run it: strict about requests, impatient with silence, gone within ten seconds of being told.

uvicorn waits for ever for a request that never comes to its end, and so do its worker tasks. `DeadlineH11` gives every
phase of a connection a time: the head of a request ten seconds, bodies and readers a kibibyte per second. h11 is
chosen over the quicker parser because that one accepts megabytes of headers and requests without a Host.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from typing import Any, Final, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker.api.answers import GUARDS, to_json
from broker.app import build_app
from broker.errors import SettingsError
from broker.logs import log
from broker.services import Services

MOST_HEAD_BYTES: Final = 16 * 1024
BACKLOG: Final = 2048


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long, in seconds, and how much we bear with a caller.

    head: for the head of a request, from its first byte on; also for the rest of one that is already answered.
    idle: between two requests. body: for a whole body. window, rate: bytes per second, counted over a window; less is
    no slow line but somebody who holds a place. per_peer: connections of one address other than loopback.
    drain: for what is under way when we are told to stop.
    """

    head: float = 10.0
    idle: int = 5
    window: float = 30.0
    rate: int = 1024
    body: float = 3600.0
    per_peer: int = 64
    drain: int = 7


PATIENCE: Final = Patience()


class _Phase(Enum):
    HEAD = auto()
    BODY = auto()
    LEFTOVER = auto()
    OURS = auto()
    """The request is here, or there is none: whatever takes time now is not the caller's doing."""


class _Alarm:
    """A moment by which something must have happened. Moving it later costs no timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        self._at = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._at, self._look)

    def clear(self) -> None:
        self._at = None

    def close(self) -> None:
        self._at = None
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._at > self._loop.time():
            self._timer = self._loop.call_at(self._at, self._look)
        else:
            self._at = None
            self._ring()


class _StrictConnection(h11.Connection):
    """h11 with two more rules for the head of a request.

    Framed twice is refused, though its RFC allows it: a proxy before us may read it the other way. The limit of size
    holds also for a head that came in one piece; h11 only counts what is not complete yet.
    """

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            if _framed_twice(event):
                raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
            if _size(event) > MOST_HEAD_BYTES:
                raise h11.RemoteProtocolError("the head is too large")
        return event


def _size(request: h11.Request) -> int:
    return len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)


def _framed_twice(request: h11.Request) -> bool:
    names = {name for name, _ in request.headers}
    return {b"content-length", b"transfer-encoding"} <= names


class DeadlineH11(H11Protocol):
    """One connection. peers: how many each address holds, shared by the connections of a server."""

    def __init__(self, *args: Any, patience: Patience, peers: Counter[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _StrictConnection(h11.SERVER, MOST_HEAD_BYTES)
        self._patience = patience
        self._peers = peers
        self._peer: str | None = None
        self._phase = _Phase.OURS
        self._began = 0.0
        self._received = 0
        self._mark = 0
        self._reading = _Alarm(self.loop, self._too_slow)
        self._writing = _Alarm(self.loop, self._unread)

    # -- arriving and leaving

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._count_in():
            self._look()
        else:
            transport.abort()

    def _count_in(self) -> bool:
        """Loopback is not counted: the tunnel's agent and a proxy bring everybody from there."""
        peer = self.client[0] if self.client else ""
        if not peer or _is_loopback(peer):
            return True
        self._peer = peer
        self._peers[peer] += 1
        return self._peers[peer] <= self._patience.per_peer

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading.close()
        self._writing.close()
        if self._peer is not None:
            self._peers[self._peer] -= 1
            if not self._peers[self._peer]:
                del self._peers[self._peer]
        super().connection_lost(exc)

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except h11.LocalProtocolError:
            self.transport.abort()

    # -- the caller's side

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def _look(self) -> None:
        """Begin the time of a new phase; within one, more bytes do not buy more time."""
        phase = self._current()
        if phase == self._phase:
            return
        self._phase, self._began, self._mark = phase, self.loop.time(), self._received
        if phase == _Phase.OURS:
            self._reading.clear()
        else:
            self._reading.set(self._patience.window if phase == _Phase.BODY else self._patience.head)

    def _current(self) -> _Phase:
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            return _Phase.LEFTOVER if self.cycle and self.cycle.response_complete else _Phase.BODY
        if state is h11.IDLE and self.timeout_keep_alive_task is None:
            return _Phase.HEAD
        return _Phase.OURS

    def _too_slow(self) -> None:
        if self._phase == _Phase.BODY and self._brings_enough():
            self._mark = self._received
            self._reading.set(self._patience.window)
        else:
            self.transport.abort()

    def _brings_enough(self) -> bool:
        if self.flow.read_paused or self.conn.they_are_waiting_for_100_continue:
            return True  # it is we who do not read
        enough = self._received - self._mark >= self._patience.rate * self._patience.window
        return enough and self.loop.time() - self._began < self._patience.body

    # -- our side

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._writing.set(self._patience.window)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing.clear()

    def _unread(self) -> None:
        """An answer that its caller does not take; while the buffer is full, it can only shrink."""
        left = self.transport.get_write_buffer_size()
        if self._unsent - left < self._patience.rate * self._patience.window:
            self.transport.abort()
        else:
            self._unsent = left
            self._writing.set(self._patience.window)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, told in the shape of every other error, if the answer has not begun yet."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(_NO_HTTP)).encode()),
            (b"connection", b"close"),
            *GUARDS,
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=_NO_HTTP), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


_NO_HTTP: Final = to_json(
    {
        "success": False,
        "error": "This is no HTTP request that we would read.",
        "code": "invalid_request",
        "retryable": False,
    }
)


def _is_loopback(peer: str) -> bool:
    with suppress(ValueError):
        address = ipaddress.ip_address(peer)
        return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)
    return False


# -- the server


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and without looking ten times a second whether it shall stop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._told = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        tens = 0
        while not await self.on_tick(tens):  # which keeps the Date header right
            tens += 10
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), 1.0)

    def stop(self) -> None:
        """Take no more connections, finish what is under way. Told twice, do not wait for it."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._told.set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Returns when every request has been answered or cut off."""
        await super().serve(sockets)
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)


def _server(services: Services, patience: Patience) -> _Server:
    protocol = partial(DeadlineH11, patience=patience, peers=Counter())
    return _Server(
        uvicorn.Config(
            build_app(services),
            http=cast(type[asyncio.Protocol], protocol),
            interface="asgi3",
            ws="none",
            lifespan="off",
            backlog=BACKLOG,
            access_log=False,
            log_config=None,
            log_level="error",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=patience.idle,
            timeout_graceful_shutdown=patience.drain,
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        )
    )


async def serve(
    services: Services, sockets: Sequence[socket.socket], *, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve and work until SIGTERM or SIGINT, then drain. Raises what ended the server or the worker before that.

    ready: called when requests are answered and signals are heard.
    """
    patience = replace(PATIENCE, per_peer=services.settings.connections_per_peer)
    async with _at_work(services, sockets, patience) as house:
        with _signals(house.stop):
            ready()
            await asyncio.wait(house.parts, return_when=asyncio.FIRST_COMPLETED)


@asynccontextmanager
async def running(services: Services, sock: socket.socket, *, patience: Patience = PATIENCE) -> AsyncIterator[str]:
    """Serve and work in this loop while the block runs; yields the base address. For tests, and for the demo."""
    async with _at_work(services, [sock], patience):
        yield f"http://{_host_of(sock)}:{port_of(sock)}"


@dataclass(frozen=True, kw_only=True)
class _House:
    """What is at work. parts: server and worker, each running until it is stopped."""

    services: Services
    server: _Server
    parts: tuple[asyncio.Task[None], asyncio.Task[None]]

    def stop(self) -> None:
        """Take nothing new; those who wait are told how things are. Told twice, wait for nobody."""
        self.services.queries.closing = True
        self.services.worker.stop()
        self.server.stop()


@asynccontextmanager
async def _at_work(services: Services, sockets: Sequence[socket.socket], patience: Patience) -> AsyncIterator[_House]:
    """Server and worker, side by side; on the way out both are drained, and what broke one of them is raised."""
    server = _server(services, patience)
    serving = asyncio.create_task(server.serve(list(sockets)), name="server")
    working = asyncio.create_task(services.worker.run(), name="worker")
    house = _House(services=services, server=server, parts=(serving, working))
    try:
        await _first(server.listening.wait(), *house.parts)
        async with services.lookout.keeping():
            yield house
    finally:
        if not server.should_exit:
            house.stop()
        ends = await asyncio.gather(working, serving, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end


async def _first(event: Any, *others: asyncio.Task[None]) -> None:
    """Wait for the event, or for the end of what was to bring it about."""
    waiting = asyncio.ensure_future(event)
    try:
        await asyncio.wait({waiting, *others}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _told_by, number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _told_by(number: signal.Signals, stop: Callable[[], None]) -> None:
    log.info(f"stopping on {number.name}", action="server_stopping")
    stop()


# -- the socket


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises `SettingsError` with the cure."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = host == "::" and socket.has_dualstack_ipv6()
    try:
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except (OSError, UnicodeError) as error:
        raise SettingsError(_unbindable(host, port, error)) from error
    # connections inherit it; asyncio would not set it on them, and an answer's second packet would wait 40 ms
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _unbindable(host: str, port: int, error: Exception) -> str:
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            return f"BROKER_PORT: port {port} is taken by another program; stop it, or choose another (--port)"
        case errno.EACCES:
            return f"BROKER_PORT: port {port} needs more rights than we have; choose one above 1023 (--port)"
        case _:
            return f"BROKER_HOST: {host} is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all (--host)"


def port_of(sock: socket.socket) -> int:
    """The port it really has."""
    return int(sock.getsockname()[1])


def _host_of(sock: socket.socket) -> str:
    host = str(sock.getsockname()[0])
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host
