"""A caller's server: records webhooks, and answers by a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.faulty_http import Script, Server, Visit, answers, serve

PATH = "/hook?secret=of-the-receiver"


@dataclass(frozen=True)
class Message:
    """A received webhook. headers: lower-case names."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """A server that records webhooks. script: its reaction to each; may be replaced at any time."""

    script: Script = field(default_factory=lambda: answers("204 No Content"))
    server: Server = field(default_factory=Server)
    received: list[Message] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def host(self) -> str:
        return self.server.host

    @property
    def url(self) -> str:
        return self.server.url(PATH)

    @property
    def types(self) -> list[str]:
        return [message.document["type"] for message in self.received]

    def about(self, task_id: str) -> list[Message]:
        return [message for message in self.received if message.document["data"]["id"] == task_id]

    async def wait_received(self, count: int, seconds: float = 10) -> list[Message]:
        """Wait for so many messages and return all."""
        async with asyncio.timeout(seconds):
            while len(self.received) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.received

    async def take(self, visit: Visit) -> None:
        body = await visit.read_body()
        lines = visit.head.decode("latin-1").split("\r\n")[1:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.received.append(Message(headers, body))
        self._arrived.set()
        await self.script(visit)


@asynccontextmanager
async def receiving() -> AsyncGenerator[Receiver]:
    receiver = Receiver()
    async with serve(receiver.take) as server:
        receiver.server = server
        yield receiver
