"""The HTTP parsers that the tests of the server run on, and one connection of each without a socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

import uvicorn
import uvloop

from broker.server.deadlines import ConnectionLimits
from broker.server.parsers import protocol_class

BACKENDS: Final[dict[str, dict[str, Any]]] = {"httptools": {"loop_factory": uvloop.new_event_loop}, "h11": {}}
"""By parser, the options of an event loop: uvloop and asyncio's own."""


def connect(
    parser: str, app: Any, transport: asyncio.Transport, *, peers: Counter[str] | None = None, **limits: Any
) -> Any:
    """Return the protocol of a new connection."""
    protocol = new_protocol(parser, app, peers=peers, **limits)
    protocol.connection_made(transport)
    return protocol


def new_protocol(parser: str, app: Any, *, peers: Counter[str] | None = None, **limits: Any) -> Any:
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", interface="asgi3")
    config.load()
    return protocol_class(parser)(
        config,
        uvicorn.server.ServerState(),
        {},
        limits=ConnectionLimits(**limits),
        peers=Counter() if peers is None else peers,
    )
