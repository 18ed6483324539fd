"""The broker's doors without a socket, for commands that find no broker running: the same requests and answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode

import anyio
from starlette.types import ASGIApp, Message

from broker.app import build_app
from broker.bootstrap import absent, load_settings, open_services
from broker.cli.client import address, running_broker
from broker.cli.house import quiet_logs
from broker.cli.screen import Unable
from broker.settings import Settings

HERE = "127.0.0.1"
LOOK_EVERY = 1.0

T = TypeVar("T")


class Doors(Protocol):
    """Whoever answers requests of the API."""

    async def ask(self, method: str, path: str, *, params: Mapping[str, str] | None = None) -> Any:
        """The JSON document of an answer. Raises what a command ends with when it is a refusal."""
        ...


@asynccontextmanager
async def doors() -> AsyncIterator[Doors]:
    """Those of the broker that runs, else our own."""
    settings = load_settings()
    quiet_logs(settings)
    async with running_broker(settings) as client:
        if client is not None:
            yield client
            return
    async with open_services(_settled(settings), joins=False) as services:
        key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
        yield Shelf(app=build_app(services), key=key)


def _settled(settings: Settings) -> Settings:
    """Nobody needs to reach us for this. Raises `Unable` in a folder where there is nothing to see."""
    path = absent(settings)
    if path is not None:
        where = address(settings.host, settings.port)
        raise Unable(
            f"No broker answers at {where}, and there is no database {path.resolve()}: is this the right folder?"
        )
    return settings.model_copy(update={"webhook_base_url": "", "tunnel_api": ""})


async def looks(look: Callable[[], Awaitable[T]], watch: bool) -> AsyncIterator[T]:
    """What is seen at first, and with `watch` each change of it."""
    seen: T | None = None
    while True:
        now = await look()
        if now != seen:
            yield now
        if not watch:
            return
        seen = now
        await anyio.sleep(LOOK_EVERY)


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A broker that answers questions and does no work. key: of a trusted caller; None where none is configured."""

    app: ASGIApp
    key: str | None = field(default=None, repr=False)

    async def ask(self, method: str, path: str, *, params: Mapping[str, str] | None = None) -> Any:
        answer = _Answer()
        await self.app(self._scope(method, path, params or {}), _no_body, answer.send)
        document = json.loads(answer.body)
        if not 200 <= answer.status < 300:
            raise Unable(document["error"])
        return document

    def _scope(self, method: str, path: str, params: Mapping[str, str]) -> dict[str, Any]:
        trust = [(b"authorization", f"Bearer {self.key}".encode())] if self.key else []
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": quote(path).encode(),
            "root_path": "",
            "query_string": urlencode(params).encode(),
            "headers": [(b"host", HERE.encode()), *trust],
            "client": (HERE, 0),
            "server": (HERE, 0),
        }


@dataclass
class _Answer:
    status: int = 0
    body: bytes = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
