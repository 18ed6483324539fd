"""Stop of the HTTP server: requests that were sent are answered, and the stop is bounded."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.bootstrap import load_settings, open_services
from broker.server.deadlines import ConnectionLimits
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import running_server, serve
from broker.services import Services
from tests.support.api import ApiBroker, MountedApp, with_parts
from tests.support.listeners import Listeners

pytestmark = pytest.mark.anyio

HOST = b"Host: 127.0.0.1\r\n"
POST = b"POST /api/generate/image HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
JSON = {"content-type": "application/json"}


def settings(folder: Path) -> Any:
    closed = "http://127.0.0.1:9"
    return load_settings(
        env_file=None, kie_keys="a-key-of-the-tests", api_url=closed, tunnel_api=closed, data_dir=folder
    )


async def seconds_to_stop(number: signal.Signals, folder: Path) -> float:
    """Return the seconds from the signal until `serve` returned, during a long poll, a stream and an upload."""
    with closing(bind_socket("127.0.0.1", 0)) as sock:
        base = f"http://127.0.0.1:{socket_port(sock)}"
        listeners = Listeners()
        async with open_services(
            settings(folder), port=socket_port(sock), open_database=listeners.open_database
        ) as services:
            broker = ApiBroker(
                mounted=MountedApp(services=services),
                listeners=listeners,
                client=httpx.AsyncClient(base_url=base, verify=False),
                port=socket_port(sock),
                folder=folder,
            )
            task = await broker.add_task()
            serving = asyncio.create_task(serve(services, [sock]))
            async with broker.client as client:
                assert (await client.get("/ready")).status_code == 200
                under_way = [
                    asyncio.create_task(client.get(f"/api/task/{task.id}?wait=30", timeout=40)),
                    asyncio.create_task(client.get(f"/api/task/{task.id}/events", timeout=40)),
                    asyncio.create_task(client.post("/api/generate/image", content=_slow_order(), headers=JSON)),
                ]
                await broker.wait_for_listener(task)
                await asyncio.sleep(0.3)
                began = time.monotonic()
                os.kill(os.getpid(), number)
                await serving
                seconds = time.monotonic() - began
                answers = await asyncio.gather(*under_way)
            assert [answer.status_code for answer in answers] == [200, 200, 202]
            assert [answer.headers.get("connection") for answer in answers] == ["close", "keep-alive", "close"]
            assert answers[0].json()["data"]["status"] == "processing"
            assert services.queries.closing
            assert services.worker.running.count == 0
            assert await services.tables.tasks.get(answers[2].json()["taskId"]) is not None
            return seconds


async def _slow_order() -> Any:
    yield b'{"prompt":'
    await asyncio.sleep(1.0)
    yield b'"x"}'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_drains_and_stops_within_ten_seconds(tmp_path: Path, number: signal.Signals) -> None:
    """Accepted requests are answered, waiting ones with the current state, and new ones are rejected."""
    before = signal.getsignal(number)
    assert await seconds_to_stop(number, tmp_path) < 5
    assert signal.getsignal(number) is before


async def test_unfinished_request_does_not_delay_the_shutdown(tmp_path: Path) -> None:
    """An upload that stalls is cut off when the time to drain is over."""
    sock = bind_socket("127.0.0.1", 0)
    async with open_services(settings(tmp_path), port=socket_port(sock)) as services:
        async with running_server(services, sock, limits=ConnectionLimits(drain_seconds=1)):
            reader, writer = await asyncio.open_connection("127.0.0.1", socket_port(sock))
            writer.write(POST + b"Content-Length: 1000\r\n\r\n{")
            await asyncio.sleep(0.1)
            began = time.monotonic()
        assert time.monotonic() - began < 4
        writer.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port_of_closed(reader, writer))


async def until_stopping(services: Services) -> None:
    while not services.queries.closing:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_request_that_arrives_just_before_the_close_is_answered(tmp_path: Path) -> None:
    """In a busy loop an idle connection may have unread bytes when its time is over."""
    sock = bind_socket("127.0.0.1", 0)
    limits = ConnectionLimits(last_request_seconds=0.2)

    async def send_in_a_busy_moment(services: Services) -> None:
        await until_stopping(services)
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, time.sleep, 0.4)
        loop.call_later(0.1, client.sendall, GET)  # in the same turn of the loop as the close, just before it

    async with open_services(settings(tmp_path), port=socket_port(sock)) as services:
        with socket.create_connection(("127.0.0.1", socket_port(sock)), timeout=10) as client:
            async with running_server(services, sock, limits=limits):
                client.sendall(GET)
                assert (await asyncio.to_thread(client.recv, 4096)).startswith(b"HTTP/1.1 200 ")
                sending = asyncio.create_task(send_in_a_busy_moment(services))
            await sending
            answer = client.recv(4096).lower()
    assert b"http/1.1 200 " in answer
    assert b"\r\nconnection: close\r\n" in answer


async def test_handshake_in_progress_at_the_stop_may_end(tmp_path: Path) -> None:
    """With TCP_DEFER_ACCEPT a handshake ends with the first byte of the request."""
    sock = bind_socket("127.0.0.1", 0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
    limits = ConnectionLimits(last_request_seconds=0.5)

    async def send_late(services: Services) -> None:
        await until_stopping(services)
        for _ in range(20):  # turns of the loop
            await asyncio.sleep(0)
        client.sendall(GET)

    async with open_services(settings(tmp_path), port=socket_port(sock)) as services:
        with socket.create_connection(("127.0.0.1", socket_port(sock)), timeout=10) as client:
            async with running_server(services, sock, limits=limits):
                sending = asyncio.create_task(send_late(services))
            await sending
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.skipif(sys.platform != "linux", reason="the packet filter is Linux's")
async def test_no_handshake_begins_once_the_server_stops(tmp_path: Path) -> None:
    """The connection would be reset at the close. The client's kernel repeats its first packet, and is refused."""
    sock = bind_socket("127.0.0.1", 0)

    async def connect_late(services: Services) -> None:
        await until_stopping(services)
        for _ in range(20):  # turns of the loop
            await asyncio.sleep(0)
        await asyncio.get_running_loop().sock_connect(client, address)

    async with open_services(settings(tmp_path), port=socket_port(sock)) as services:
        with socket.socket() as client:
            client.setblocking(False)
            address = sock.getsockname()
            async with running_server(services, sock, limits=ConnectionLimits(last_request_seconds=0.5)):
                connecting = asyncio.create_task(connect_late(services))
            with pytest.raises(ConnectionRefusedError):
                await connecting


async def test_idle_connection_accepted_while_the_listener_closes_does_not_delay_the_shutdown(tmp_path: Path) -> None:
    late: list[socket.socket] = []

    async def connect_until_refused(port: int) -> None:
        while len(late) < 200:
            connection = socket.socket()
            connection.setblocking(False)
            late.append(connection)
            try:
                await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
            except OSError:
                return
            await asyncio.sleep(0)

    try:
        for _ in range(5):  # the moment has to be hit
            sock = bind_socket("127.0.0.1", 0)
            async with open_services(settings(tmp_path), port=socket_port(sock)) as services:
                async with (
                    asyncio.timeout(10),
                    running_server(services, sock, limits=ConnectionLimits(drain_seconds=30)),
                ):
                    clients = [asyncio.create_task(connect_until_refused(socket_port(sock))) for _ in range(5)]
                    await asyncio.sleep(0.001)
                for client in clients:
                    client.cancel()
    finally:
        for connection in late:
            connection.close()


def port_of_closed(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    return int(writer.get_extra_info("peername")[1])


class CrashingWorker:
    """A worker that raises soon after its start."""

    last_heartbeat = 9e9

    async def run(self) -> None:
        await asyncio.sleep(0.05)
        raise RuntimeError("the worker failed")

    def stop(self) -> None:
        pass


async def test_server_stops_when_the_worker_dies(tmp_path: Path) -> None:
    """A broker that accepts orders and processes none would be worse than one that is restarted."""
    with closing(bind_socket("127.0.0.1", 0)) as sock:
        async with open_services(settings(tmp_path), port=socket_port(sock)) as services:
            changed = with_parts(services, worker=CrashingWorker())
            async with asyncio.timeout(10):
                with pytest.raises(RuntimeError, match="the worker failed"):
                    await serve(changed, [sock])
