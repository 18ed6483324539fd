"""The HTTP parsers that the tests of the server run on, and connections of each without a socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import uvicorn
import uvloop

from broker.server.deadlines import ConnectionLimits
from broker.server.parsers import protocol_class

BACKENDS: Final[dict[str, dict[str, Any]]] = {"httptools": {"loop_factory": uvloop.new_event_loop}, "h11": {}}
"""By parser, the options of an event loop: uvloop and asyncio's own."""


class MemoryTransport(asyncio.Transport):
    """A connection whose other end is the test."""

    def __init__(self, peer: str = "127.0.0.1") -> None:
        super().__init__({"peername": (peer, 1), "sockname": ("10.0.0.1", 80)})
        self.written = b""
        self.writes = 0
        self.reads = True
        self.is_closed = False
        self.is_aborted = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.writes += 1

    def write_eof(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def get_write_buffer_size(self) -> int:
        return 0


def new_protocol(parser: str, app: Any, *, peers: Counter[str] | None = None, **limits: Any) -> Any:
    """Return the protocol of a connection that is not made yet."""
    config = uvicorn.Config(app, log_config=None, log_level="critical", lifespan="off", ws="none", interface="asgi3")
    config.load()
    return protocol_class(parser)(
        config,
        uvicorn.server.ServerState(),
        {},
        limits=ConnectionLimits(**limits),
        peers=Counter() if peers is None else peers,
    )


def connect(parser: str, app: Any, transport: MemoryTransport, **options: Any) -> Any:
    """Return the protocol of a new connection. options: those of `new_protocol`."""
    protocol = new_protocol(parser, app, **options)
    protocol.connection_made(transport)
    return protocol


@dataclass(frozen=True)
class SeenRequest:
    """A request as the application gets it."""

    method: str
    target: bytes
    version: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    path: str


@dataclass
class Exchange:
    """What came of some bytes on one connection."""

    requests: list[SeenRequest] = field(default_factory=list)
    begun: int = 0
    """Requests that the application was started for."""
    is_refused: bool = False
    """True if the last answer was 400, or if the connection was reset."""


async def exchange(parser: str, data: bytes, piece_bytes: int = 0) -> Exchange:
    """Send bytes to an application that answers every request when it has read the body. piece_bytes: 0 for one."""
    result, transport = Exchange(), MemoryTransport()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        result.begun += 1
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body, more = body + message["body"], message["more_body"]
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        headers = tuple(
            (name, value.lower() if name == b"transfer-encoding" else value) for name, value in scope["headers"]
        )
        result.requests.append(
            SeenRequest(scope["method"], target, scope["http_version"], headers, body, scope["path"])
        )
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    protocol = connect(parser, app, transport)
    size = piece_bytes or max(1, len(data))
    for start in range(0, len(data), size):
        if transport.is_closed:
            break
        protocol.data_received(data[start : start + size])
        await _turns(3)
    await _turns(12)
    protocol.connection_lost(None)
    await _turns(3)
    result.is_refused = transport.is_aborted or b"HTTP/1.1 400 " in transport.written
    return result


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)
