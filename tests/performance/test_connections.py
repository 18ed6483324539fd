"""Work of the event loop per request of a kept-alive connection, and turns until new connections are answered."""

from __future__ import annotations

import asyncio
import select
import socket
from collections import Counter
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.server.sockets import bind_socket, share_listener
from tests.support.api import open_api
from tests.support.http_parsers import BACKENDS, MemoryTransport, connect, new_protocol

REQUEST = b"GET /api/task/task_1 HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n"
REQUESTS = 50


SCHEDULING = {"call_at": "timers", "call_soon": "callbacks", "create_task": "tasks"}


def count_scheduling(loop: asyncio.AbstractEventLoop) -> Counter[str]:
    """Return the counts of what is scheduled on an event loop from now on."""
    counts = Counter[str]()

    def counting(name: str, schedule: Any) -> Any:
        def count(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return schedule(*args, **kwargs)

        return count

    for method, name in SCHEDULING.items():
        setattr(loop, method, counting(name, getattr(loop, method)))
    return counts


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


async def count_scheduled(parser: str) -> Counter[str]:
    """Return what the requests of one connection schedule, without its beginning and its end."""
    loop = asyncio.get_running_loop()
    counts = count_scheduling(loop)
    async with await loop.create_server(partial(new_protocol, parser, answer), "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with closing(writer):
            for number in range(REQUESTS + 2):
                if number == 2:
                    counts.clear()
                writer.write(REQUEST)
                await reader.readuntil(b"{}")
            return Counter(counts)


@pytest.mark.parametrize("parser", BACKENDS)
def test_request_on_a_kept_alive_connection_costs_one_task_and_no_timer(parser: str) -> None:
    with asyncio.Runner() as runner:
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_connections_that_arrive_together_are_answered_within_a_few_turns(tmp_path: Path, backend: str) -> None:
    """uvloop accepts one connection per listening socket and turn, and a turn of a busy loop takes milliseconds."""
    count = 64

    async def count_turns() -> int:
        async with open_api(tmp_path, sockets=True) as broker:
            with ExitStack() as stack:
                clients = [
                    stack.enter_context(socket.create_connection(("127.0.0.1", broker.port))) for _ in range(count)
                ]
                for client in clients:
                    client.sendall(b" \r\n\r\n")  # malformed, so it is answered where it arrives
                turns = 0
                while len(select.select(clients, (), (), 0)[0]) < count:
                    await asyncio.sleep(0)
                    turns += 1
                return turns

    with asyncio.Runner(**BACKENDS[backend]) as runner:
        assert runner.run(count_turns()) <= count / 4


def test_own_loop_of_asyncio_has_one_listener() -> None:
    """It accepts a backlog per listener and turn; without free descriptors it logs each of these attempts."""

    async def count_listeners() -> int:
        with ExitStack() as stack:
            listeners = share_listener(bind_socket("127.0.0.1", 0))
            for listener in listeners:
                stack.enter_context(listener)
            return len(listeners)

    assert asyncio.run(count_listeners()) == 1
