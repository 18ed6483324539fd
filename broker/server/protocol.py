"""One HTTP/1.1 connection with deadlines and strict framing.

uvicorn waits without limit for a request that never ends, and so do its worker tasks. `DeadlineH11` limits every phase
of a connection: ten seconds for the head of a request, at least a kibibyte per second for bodies and readers. It parses
a few hundred events per event-loop turn, and rejects bodies in tiny chunks. h11 is chosen over the faster parser
because that one accepts megabytes of headers and requests without a Host.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker.api.http.answers import tracked_answer
from broker.api.http.connection import EXTENSION, ClientConnection
from broker.api.http.responses import SECURITY_HEADERS, to_json
from broker.net.hosts import is_loopback_host
from broker.net.pieces import ChunkCounter, TooManyPieces, TurnCounter
from broker.server.transports import OrderTransport, TurnFlow, has_unread_bytes, unacknowledged_bytes

MAX_HEAD_BYTES: Final = 16 * 1024
CLOSE_HEADER: Final = (b"connection", b"close")

_MALFORMED_MESSAGE: Final = "This is not a well-formed HTTP request."


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """Limits on the time and the number of connections that a client may use."""

    head_seconds: float = 10.0
    """For the head of a request, from its first byte on; also for the rest of a request that is already answered."""
    idle_seconds: int = 5
    """Between two requests."""
    body_seconds: float = 3600.0
    """For a complete body."""
    window_seconds: float = 30.0
    min_bytes_per_second: int = 1024
    """Average over a window. Below it a client is treated as stalled, not as slow."""
    max_per_peer: int = 64
    """Connections of one address other than loopback."""
    drain_seconds: int = 7
    """For requests in progress when the server stops."""
    last_request_seconds: float = 0.1
    """For requests and handshakes on their way when the server stops: a round trip, and a busy moment of the loop."""


class _Phase(Enum):
    HEAD = auto()
    BODY = auto()
    LEFTOVER = auto()
    SERVER = auto()
    """The request is complete, or there is none: time that passes now is not the client's."""


class _Timer:
    """A timer that can be restarted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_expiry: Callable[[], None]) -> None:
        self._loop = loop
        self._on_expiry = on_expiry
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        self.cancel()
        self._handle = self._loop.call_later(seconds, self._on_expiry)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class _StrictConnection(h11.Connection):
    """h11 with two more rules for the head of a request, one for its body, and a limit of events per turn.

    A request with both Content-Length and Transfer-Encoding is rejected, though the RFC allows it: a proxy in front may
    read it the other way. The size limit also holds for a head that arrived in one piece; h11 only counts incomplete
    ones.
    """

    is_chunked = False
    """True if the body of the current request is chunked."""
    has_more = False
    """True if the turn ended before the received bytes were used up."""
    error_message = _MALFORMED_MESSAGE
    """For the client, once `next_event` has raised."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._chunks = ChunkCounter()
        self._turn = TurnCounter()

    def start_next_turn(self) -> float:
        """Return the seconds until the next turn."""
        self.has_more = False
        return self._turn.start_next()

    def next_event(self) -> Any:
        """Return the next event; `NEED_DATA` also when the turn is over."""
        self.has_more = self._turn.is_over
        if self.has_more:
            return h11.NEED_DATA
        event = super().next_event()
        self._turn.add(len(event.data) if isinstance(event, h11.Data) else 0)
        if isinstance(event, h11.Data) and self.is_chunked:
            self._count_chunk(event)
        if isinstance(event, h11.Request):
            self._check_head(event)
        return event

    def _check_head(self, event: h11.Request) -> None:
        names = {name for name, _ in event.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        head_bytes = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
        if head_bytes > MAX_HEAD_BYTES:
            raise h11.RemoteProtocolError("the head is too large")
        self.is_chunked = b"transfer-encoding" in names
        self._chunks, self._turn = ChunkCounter(), TurnCounter()

    def _count_chunk(self, event: h11.Data) -> None:
        try:
            self._chunks.add(len(event.data), is_start=event.chunk_start)
        except TooManyPieces as error:
            self.error_message = f"The body came in {error}: send larger ones."
            raise h11.RemoteProtocolError(str(error)) from None


class DeadlineH11(H11Protocol):
    """One client connection."""

    def __init__(self, *args: Any, limits: ConnectionLimits, peers: Counter[str], **kwargs: Any) -> None:
        """peers: connections by client address, shared by all connections of a server."""
        super().__init__(*args, **kwargs)
        self.conn: _StrictConnection = _StrictConnection()
        self._limits = limits
        self._min_window_bytes = limits.min_bytes_per_second * limits.window_seconds
        self._peers = peers
        self._peer: str | None = None
        self._is_lingering = False
        self._phase = _Phase.SERVER
        self._phase_started = 0.0
        self._received = 0
        self._window_start_bytes = 0
        self._reading = _Timer(self.loop, self._on_reading_expired)
        self._writing = _Timer(self.loop, self._on_writing_expired)
        self._connection = ClientConnection(self._unsent_bytes)
        self._unsent_before = sys.maxsize

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: TurnFlow = TurnFlow(transport)
        if self._register_peer():
            self._update_phase()
        else:
            transport.abort()

    def _register_peer(self) -> bool:
        """Count the connection; return False above the limit. Loopback is exempt: tunnels and proxies use it."""
        peer = self.client[0] if self.client else ""
        if not peer or is_loopback_host(peer):
            return True
        self._peer = peer
        self._peers[peer] += 1
        return self._peers[peer] <= self._limits.max_per_peer

    def _unsent_bytes(self) -> int:
        """Return the bytes in our buffers and in those of the kernel that the client's side has not acknowledged."""
        return self.transport.get_write_buffer_size() + unacknowledged_bytes(self.transport)

    def eof_received(self) -> None:
        self._connection.cut_off_unsent()

    def _is_draining(self, seconds: float) -> bool:
        """Return whether the last response is on its way to a slow reader. seconds: since the last look."""
        before, self._unsent_before = self._unsent_before, self._unsent_bytes()
        received = before - self._unsent_before
        return self._unsent_before > 0 and received >= self._limits.min_bytes_per_second * seconds

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it is idle."""
        if self.transport.is_closing():  # uvicorn leaves the timer of a connection that the client has closed
            return
        if self._is_draining(self.timeout_keep_alive):
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            return
        self._connection.cut_off_unsent()
        super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lose(exc)
        self._reading.cancel()
        self._writing.cancel()
        if self._peer is not None:
            self._peers[self._peer] -= 1
            if not self._peers[self._peer]:
                del self._peers[self._peer]
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close after the response to the request in progress, or to one that arrives within `last_request_seconds`."""
        if self._is_responding():
            self.cycle.default_headers = self.server_state.default_headers  # they announce the close
            super().shutdown()
        else:
            self.loop.call_later(self._limits.last_request_seconds, self._close_idle)

    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self._is_lingering

    def _close_idle(self) -> None:
        if self._is_responding() or self.transport.is_closing():
            return
        if not self._is_lingering and has_unread_bytes(
            self.transport
        ):  # closing now would reset the connection instead of answering
            self.shutdown()
            return
        try:
            if self._is_lingering:
                self.transport.close()
            else:
                super().shutdown()
        except h11.LocalProtocolError:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if not self._is_lingering:
            super().data_received(data)
            self._update_phase()

    def handle_events(self) -> None:
        """Handle the events of this turn, and the others in later turns of the event loop."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # the application of the new request starts in the next turn
            cycle: Any = self.cycle
            cycle.scope["extensions"] = {EXTENSION: {"connection": self._connection}}
            cycle.transport = OrderTransport(self.transport, partial(self._end_response, cycle.scope))
        if self.conn.has_more and not self.flow.is_held:
            self.flow.hold()
            self.loop.call_later(self.conn.start_next_turn(), self._continue_parsing)

    def _continue_parsing(self) -> None:
        self.flow.release()
        if not self._is_lingering and not self.transport.is_closing():
            self.handle_events()
            self._update_phase()

    def on_response_complete(self) -> None:
        self._unsent_before = sys.maxsize
        super().on_response_complete()
        if self._current_phase() == _Phase.LEFTOVER and self.conn.is_chunked:
            self._linger()  # parsing the chunks would be work for nothing
        self._update_phase()

    def _end_response(self, scope: Any) -> None:
        """Close after a response that is the last one of its connection."""
        if tracked_answer(scope) is None:
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """End our side, and discard what the client still sends: closed at once, it would not read the response."""
        if not self.transport.is_closing():
            self._is_lingering = True
            self.flow.resume_reading()
            self.transport.write_eof()
            self._update_phase()

    def _update_phase(self) -> None:
        """Start the deadline of a new phase; within a phase more bytes do not extend it."""
        phase = self._current_phase()
        if phase == self._phase:
            return
        self._phase, self._phase_started, self._window_start_bytes = phase, self.loop.time(), self._received
        if phase == _Phase.SERVER:
            self._reading.cancel()
        else:
            self._reading.start(self._limits.window_seconds if phase == _Phase.BODY else self._limits.head_seconds)

    def _current_phase(self) -> _Phase:
        if self._is_lingering:
            return _Phase.LEFTOVER
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            return _Phase.LEFTOVER if self.cycle and self.cycle.response_complete else _Phase.BODY
        if state is h11.IDLE and self.timeout_keep_alive_task is None:
            return _Phase.HEAD
        return _Phase.SERVER

    def _on_reading_expired(self) -> None:
        if self._phase == _Phase.BODY and self._is_fast_enough():
            self._window_start_bytes = self._received
            self._reading.start(self._limits.window_seconds)
        elif self._is_lingering and self._is_draining(self._limits.head_seconds):
            self._reading.start(self._limits.head_seconds)
        else:
            self._connection.cut_off_unsent()
            self.transport.abort()

    def _is_fast_enough(self) -> bool:
        if self.flow.read_paused or self.conn.they_are_waiting_for_100_continue:
            return True  # the server is the one that does not read
        enough = self._min_window_bytes <= self._received - self._window_start_bytes
        return enough and self.loop.time() - self._phase_started < self._limits.body_seconds

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._writing.start(self._limits.window_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing.cancel()

    def _on_writing_expired(self) -> None:
        """Close the connection if the client does not read; while the buffer is full it can only shrink."""
        left = self.transport.get_write_buffer_size()
        if self._unsent - left < self._min_window_bytes:
            self._connection.cut_off_unsent()
            self.transport.abort()
        else:
            self._unsent = left
            self._writing.start(self._limits.window_seconds)

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP in the shape of every other error, unless a response has begun."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()
            return
        error = {"success": False, "error": self.conn.error_message, "code": "invalid_request", "retryable": False}
        body = to_json(error)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *SECURITY_HEADERS,
        ]
        response = h11.Response(status_code=400, headers=headers)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if self.cycle and not self.cycle.response_complete:  # the handler waits for the rest of the body
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._linger()
