"""Connections that h11 parses: pure Python, for platforms without the compiled parser (`BROKER_HTTP=h11`)."""

from __future__ import annotations

from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker.net.pieces import ChunkCounter, TooManyPieces, TurnCounter
from broker.server.deadlines import Phase
from broker.server.protocol import MAX_HEAD_BYTES, MAX_HEADER_LINES, GuardedProtocol


class _StrictConnection(h11.Connection):
    """h11 with more rules for the head of a request, one for its body, and a limit of events per turn.

    A request with both Content-Length and Transfer-Encoding is rejected, though the RFC allows it: a proxy in front may
    read it the other way. The size limit also holds for a head that arrived in one piece; h11 only counts incomplete
    ones.
    """

    is_chunked = False
    """True if the body of the current request is chunked."""
    has_more = False
    """True if the turn ended before the received bytes were used up."""
    error: TooManyPieces | None = None
    """The rule that was broken, once `next_event` has raised; None if it was one of HTTP's."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._chunks = ChunkCounter()
        self._turn = TurnCounter()
        self._header_lines = 0

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
        elif isinstance(event, h11.Request):
            self._check_head(event)
        elif isinstance(event, h11.EndOfMessage):
            self._count_headers(event)
        return event

    def _check_head(self, event: h11.Request) -> None:
        names = {name for name, _ in event.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        head_bytes = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
        if head_bytes > MAX_HEAD_BYTES:
            raise h11.RemoteProtocolError("the head is too large")
        self._header_lines = 0
        self._count_headers(event)
        self.is_chunked = b"transfer-encoding" in names
        self._chunks, self._turn = ChunkCounter(), TurnCounter()

    def _count_headers(self, event: h11.Request | h11.EndOfMessage) -> None:
        self._header_lines += len(event.headers)
        if self._header_lines > MAX_HEADER_LINES:
            raise h11.RemoteProtocolError("too many header lines")

    def _count_chunk(self, event: h11.Data) -> None:
        try:
            self._chunks.add(len(event.data), is_start=event.chunk_start)
        except TooManyPieces as error:
            self.error = error
            raise h11.RemoteProtocolError(str(error)) from None


class GuardedH11(GuardedProtocol, H11Protocol):
    """One client connection, parsed by h11."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: _StrictConnection = _StrictConnection()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if not self.is_lingering:
            super().data_received(data)
            self.update_phase()

    def handle_events(self) -> None:
        """Handle the events of this turn, and the others in later turns of the event loop."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # the application of the new request starts in the next turn
            self.cycle.scope["extensions"] = self.extensions
            self.cycle.transport = self.order_transport
        if self.conn.has_more and not self.flow.is_held:
            self.hold(self.conn.start_next_turn())

    def parse_more(self) -> None:
        self.handle_events()

    def on_response_complete(self) -> None:
        """Start the next request, which may have been received already; in place of uvicorn's timer for each."""
        self.complete_response()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY and self.conn.is_chunked:
            self.linger()  # parsing the chunks would be work for nothing
        elif self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            self.conn.start_next_cycle()
            self.handle_events()
        self.update_phase()

    def send_400_response(self, msg: str) -> None:
        self.reject_request(self.conn.error)

    def client_phase(self) -> Phase:
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            return Phase.LEFTOVER if self.cycle and self.cycle.response_complete else Phase.BODY
        if state is not h11.IDLE:
            return Phase.SERVER
        has_begun = not self.has_answered or bool(self.conn.trailing_data[0])
        return Phase.HEAD if has_begun else Phase.IDLE

    def can_answer(self) -> bool:
        return self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}

    def is_continue_awaited(self) -> bool:
        return self.conn.they_are_waiting_for_100_continue
