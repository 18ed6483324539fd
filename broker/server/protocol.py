"""One HTTP/1.1 connection with deadlines and strict framing, whatever parses its bytes.

uvicorn waits without limit for a request that never ends, and so do its worker tasks. `GuardedProtocol` limits every
phase of a connection: ten seconds for the head of a request, at least a kibibyte per second for bodies and readers. It
parses a few hundred events per event-loop turn, and rejects bodies in tiny chunks. `httptools_protocol` and
`h11_protocol` adapt the two parsers: the first is several times faster, the second is pure Python.
"""

from __future__ import annotations

import asyncio
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from broker.api.http.answers import tracked_answer
from broker.api.http.connection import EXTENSION, ClientConnection
from broker.api.http.responses import SECURITY_HEADERS, to_json
from broker.api.native.ready_polls import ReadyResponse
from broker.net.hosts import is_loopback_host
from broker.net.pieces import TooManyPieces
from broker.server.deadlines import ConnectionLimits, LazyTimer, Phase
from broker.server.transports import OrderTransport, TurnFlow, has_unread_bytes, unacknowledged_bytes

MAX_HEAD_BYTES: Final = 16 * 1024
"""Of the request line and the header lines; also of the trailers, and of the extensions of a chunk."""
MAX_HEADER_LINES: Final = 100
"""Of one request, trailers included."""
CLOSE_HEADER: Final = (b"connection", b"close")

_MALFORMED_MESSAGE: Final = "This is not a well-formed HTTP request."

FindReady = Callable[[bytes, Sequence[tuple[bytes, bytes]]], ReadyResponse | None]

if TYPE_CHECKING:
    from uvicorn.server import ServerState


class GuardedProtocol(asyncio.Protocol):
    """One client connection: its deadlines, its end, and its place in the limit per address.

    A mixin of uvicorn's protocol classes, which have the attributes that are only declared here.
    """

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    client: tuple[str, int] | None
    server_state: ServerState
    cycle: Any
    flow: Any

    def __init__(
        self,
        *args: Any,
        limits: ConnectionLimits,
        peers: Counter[str],
        find_ready: FindReady = lambda *_: None,
        **kwargs: Any,
    ) -> None:
        """peers: connections by client address, shared by all connections of a server.

        find_ready: returns the response to a GET request without a body, by its target and headers, if that is ready;
        a protocol may ask it before it calls the application.
        """
        super().__init__(*args, **kwargs)
        self.find_ready = find_ready
        self._limits = limits
        self._min_window_bytes = limits.min_bytes_per_second * limits.window_seconds
        self._peers = peers
        self._peer: str | None = None
        self._phase_started = 0.0
        self._window_start_bytes = 0
        self._is_client_waiting = False
        self._unsent = 0
        self._unsent_before = sys.maxsize
        self._reading = LazyTimer(self.loop, self._on_reading_expired)
        self._writing = LazyTimer(self.loop, self._on_writing_expired)
        self.phase = Phase.SERVER
        self.received = 0
        """Bytes."""
        self.has_answered = False
        """True after the first response."""
        self.is_lingering = False
        """True after the end of our side: what the client still sends is discarded."""
        self.connection = ClientConnection(self._unsent_bytes)
        self.extensions = {EXTENSION: {"connection": self.connection}}
        """Of the scope of every request."""

    # -- what the parsers know

    @abstractmethod
    def parse_more(self) -> None:
        """Parse bytes that were received before, in a new turn of the event loop."""

    @abstractmethod
    def client_phase(self) -> Phase:
        """Return what the client is expected to send now."""

    @abstractmethod
    def can_answer(self) -> bool:
        """Return whether a response may be sent now, and none has begun."""

    @abstractmethod
    def is_continue_awaited(self) -> bool:
        """Return whether the client waits for 100 Continue."""

    # -- begin and end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.flow = TurnFlow(self.transport)
        self.order_transport = OrderTransport(self.transport, self._end_response)
        if self._register_peer():
            self.update_phase()
        else:
            self.transport.abort()

    def _register_peer(self) -> bool:
        """Count the connection; return False above the limit. Loopback is exempt: tunnels and proxies use it."""
        peer = self.client[0] if self.client else ""
        if not peer or is_loopback_host(peer):
            return True
        self._peer = peer
        self._peers[peer] += 1
        return self._peers[peer] <= self._limits.max_per_peer

    def eof_received(self) -> None:
        self.connection.cut_off_unsent()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.lose(exc)
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
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(self._limits.last_request_seconds, self._close_idle)

    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.is_lingering

    def _close_idle(self) -> None:
        if self._is_responding() or self.transport.is_closing():
            return
        if not self.is_lingering and has_unread_bytes(self.transport):
            self.shutdown()  # closing now would reset the connection instead of answering
        else:
            self.transport.close()

    def _end_response(self) -> None:
        """Close after a response that is the last one of its connection."""
        if tracked_answer(self.cycle.scope) is None:
            self.transport.close()
        else:
            self.linger()

    def linger(self) -> None:
        """End our side, and discard what the client still sends: closed at once, it would not read the response."""
        if not self.transport.is_closing():
            self.is_lingering = True
            self.flow.resume_reading()
            self.transport.write_eof()
            self.update_phase()

    def reject_request(self, error: Exception | None = None) -> None:
        """Answer malformed HTTP in the shape of every other error, unless a response has begun."""
        if not self.can_answer():
            self.transport.abort()
            return
        message = f"The body came in {error}: send larger ones." if isinstance(error, TooManyPieces) else None
        body = to_json(
            {
                "success": False,
                "error": message or _MALFORMED_MESSAGE,
                "code": "invalid_request",
                "retryable": False,
            }
        )
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            CLOSE_HEADER,
            *SECURITY_HEADERS,
        ]
        lines = [b"HTTP/1.1 400 Bad Request", *(b": ".join(header) for header in headers), b"", body]
        self.transport.write(b"\r\n".join(lines))
        if self.cycle and not self.cycle.response_complete:  # the handler waits for the rest of the body
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.linger()

    # -- turns of the event loop

    def hold(self, seconds: float) -> None:
        """Go on parsing in a later turn of the event loop, and receive nothing before."""
        if not self.flow.is_held:
            self.flow.hold()
            self.loop.call_later(seconds, self._continue_parsing)

    def _continue_parsing(self) -> None:
        self.flow.release()
        if not self.is_lingering and not self.transport.is_closing():
            self.parse_more()
            self.update_phase()

    # -- deadlines of the client's requests

    def complete_response(self) -> None:
        """Count a response that has been sent."""
        self.server_state.total_requests += 1
        self.has_answered = True
        self._unsent_before = sys.maxsize
        if self.flow.read_paused and not self.transport.is_closing():
            self.flow.resume_reading()

    def update_phase(self) -> None:
        """Start the deadline of a new phase; within a phase more bytes do not extend it."""
        phase = Phase.LEFTOVER if self.is_lingering else self.client_phase()
        if phase is self.phase:
            return
        self.phase = phase
        if phase is Phase.SERVER:
            self._reading.stop()
        elif phase is Phase.IDLE:
            self._reading.start(self._limits.idle_seconds)
        elif phase is Phase.BODY:
            self._phase_started, self._window_start_bytes = self.loop.time(), self.received
            self._is_client_waiting = False
            self._reading.start(self._limits.window_seconds)
        else:
            self._reading.start(self._limits.head_seconds)

    def _on_reading_expired(self) -> None:
        if self.transport.is_closing():
            return
        if self.phase is Phase.BODY and self._is_fast_enough():
            self._window_start_bytes = self.received
            self._reading.start(self._limits.window_seconds)
            return
        seconds = self._limits.idle_seconds if self.phase is Phase.IDLE else self._limits.head_seconds
        if (self.phase is Phase.IDLE or self.is_lingering) and self._is_draining(seconds):
            self._reading.start(seconds)
            return
        self.connection.cut_off_unsent()
        if self.phase is Phase.IDLE:
            self.transport.close()
        else:
            self.transport.abort()

    def _is_fast_enough(self) -> bool:
        was_waiting, self._is_client_waiting = (
            self._is_client_waiting,
            self.flow.read_paused or self.is_continue_awaited(),
        )
        if self._is_client_waiting or was_waiting:
            return True  # the server is the one that does not read, or was for a part of this window
        enough = self._min_window_bytes <= self.received - self._window_start_bytes
        return enough and self.loop.time() - self._phase_started < self._limits.body_seconds

    # -- deadlines of the client's reading

    def _unsent_bytes(self) -> int:
        """Return the bytes in our buffers and in those of the kernel that the client's side has not acknowledged."""
        return self.transport.get_write_buffer_size() + unacknowledged_bytes(self.transport)

    def _is_draining(self, seconds: float) -> bool:
        """Return whether the last response is on its way to a slow reader. seconds: since the last look."""
        before, self._unsent_before = self._unsent_before, self._unsent_bytes()
        received = before - self._unsent_before
        return self._unsent_before > 0 and received >= self._limits.min_bytes_per_second * seconds

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._writing.start(self._limits.window_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing.stop()

    def _on_writing_expired(self) -> None:
        """Close the connection if the client does not read; while the buffer is full it can only shrink."""
        left = self.transport.get_write_buffer_size()
        if self._unsent - left < self._min_window_bytes:
            self.connection.cut_off_unsent()
            self.transport.abort()
        else:
            self._unsent = left
            self._writing.start(self._limits.window_seconds)
