"""Work of the event loop per request of a kept-alive connection: timers, tasks, callbacks and writes."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from tests.support.http_parsers import BACKENDS, MemoryTransport, connect, new_protocol

REQUEST = b"GET /api/task/task_1 HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n"
REQUESTS = 50


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts what is scheduled on it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        self.counts["timers"] += 1
        return super().call_at(when, callback, *args, context=context)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        self.counts["callbacks"] += 1
        return super().call_soon(callback, *args, context=context)

    def create_task(self, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        self.counts["tasks"] += 1
        return super().create_task(*args, **kwargs)


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


async def count_scheduled(parser: str) -> Counter[str]:
    """Return what the requests of one connection schedule, without its beginning and its end."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)
    async with await loop.create_server(partial(new_protocol, parser, answer), "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with closing(writer):
            for number in range(REQUESTS + 2):
                if number == 2:
                    loop.counts.clear()
                writer.write(REQUEST)
                await reader.readuntil(b"{}")
            counts = Counter(loop.counts)
    return counts


@pytest.mark.parametrize("parser", BACKENDS)
def test_request_on_a_kept_alive_connection_costs_one_task_and_no_timer(parser: str) -> None:
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        counts = runner.run(count_scheduled(parser))
    assert counts["timers"] == 0
    assert counts["tasks"] == REQUESTS
    # the task's step and its end; the client of this test waits for its reader, which takes two more
    assert counts["callbacks"] <= 4 * REQUESTS


def test_small_response_is_one_write() -> None:
    """A second packet would cost a system call here, and one more wake-up of the client."""

    async def count_writes() -> int:
        transport = MemoryTransport()
        protocol = connect("httptools", answer, transport)
        for _ in range(REQUESTS):
            protocol.data_received(REQUEST)
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        return transport.writes

    assert asyncio.run(count_writes()) == REQUESTS
