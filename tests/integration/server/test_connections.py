"""HTTP server: deadlines of connections, strict parsing, and a bounded shutdown."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.errors import SettingsError
from broker.server.deadlines import ConnectionLimits
from broker.server.sockets import bind_socket, socket_port
from storage.states import TaskState
from tests.support.api import ApiBroker, open_api, png
from tests.support.http_parsers import MemoryTransport, connect, new_protocol

pytestmark = pytest.mark.anyio

QUICK = ConnectionLimits(head_seconds=0.5, idle_seconds=1, window_seconds=0.5, min_bytes_per_second=1024)
HOST = b"Host: 127.0.0.1\r\n"
POST = b"POST /api/generate/image HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"


async def closed_after(broker: ApiBroker, data: bytes, *, drip: bytes = b"", every: float = 0.05) -> float:
    """Return the seconds until the server closes a connection that sends `data`, then `drip` repeatedly."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    began = time.monotonic()

    async def dripping() -> None:
        while drip:
            writer.write(drip)
            await asyncio.sleep(every)

    writer.write(data)
    sender = asyncio.create_task(dripping())
    try:
        async with asyncio.timeout(5):
            while await _read(reader):
                pass
        return time.monotonic() - began
    finally:
        sender.cancel()
        writer.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(65536)
    except ConnectionError:
        return b""


# -- unfinished requests


UNFINISHED = [
    ("silent", b"", b""),
    ("half a head", b"GET /health HTTP/1.1\r\nHos", b""),
    ("a head byte by byte", b"GET /health HTTP/1.1\r\nX: ", b"x"),
    ("a head line by line", b"GET /health HTTP/1.1\r\n", b"a: b\r\n"),
    ("half a body", POST + b"Content-Length: 1000\r\n\r\n{", b""),
    ("a body byte by byte", POST + b"Content-Length: 100000\r\n\r\n", b"x"),
    ("half a chunk", POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b""),
    ("a chunk header byte by byte", POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    ("a second head", b"GET /health HTTP/1.1\r\n" + HOST + b"\r\nGET /health HTTP/1.1\r\n", b""),
    ("an unread body", b"POST /nope HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n", b"x"),
    ("an endless unread body", b"POST /nope HTTP/1.1\r\n" + HOST + b"Content-Length: 999999999\r\n\r\n",
     b"x" * 65536),
]  # fmt: skip


async def test_unfinished_request_is_closed(tmp_path: Path) -> None:
    """More bytes do not extend the deadline, except those of a body at a sufficient rate."""
    async with open_api(tmp_path, limits=QUICK) as broker:
        tries = [closed_after(broker, data, drip=drip) for _, data, drip in UNFINISHED]
        for (what, _, _), seconds in zip(UNFINISHED, await asyncio.gather(*tries), strict=True):
            assert 0.3 <= seconds <= 2.5, what


async def test_hundreds_of_silent_connections_do_not_block_others(tmp_path: Path) -> None:
    async with open_api(tmp_path, limits=QUICK) as broker:
        silent = [asyncio.create_task(closed_after(broker, b"GET /health HT")) for _ in range(300)]
        async with asyncio.timeout(20):  # they would wait for the silent ones, one after the other
            for _ in range(20):
                assert (await broker.client.get("/health")).status_code == 200
        assert max(await asyncio.gather(*silent)) < 20


async def test_slow_upload_may_take_many_windows(tmp_path: Path) -> None:
    """A large image over a bad connection lasts many windows; only a stall ends it."""
    async with open_api(
        tmp_path, limits=ConnectionLimits(head_seconds=0.3, window_seconds=0.3, min_bytes_per_second=100)
    ) as broker:

        async def slowly() -> Any:
            yield b'{"prompt":"x","padding":"'
            for _ in range(24):
                await asyncio.sleep(0.05)
                yield b"x" * 100
            yield b'"}'

        headers = {"content-type": "application/json"}
        answer = await broker.client.post("/api/generate/image", content=slowly(), headers=headers)
        assert answer.status_code == 202


async def test_slow_response_does_not_close_the_connection(tmp_path: Path) -> None:
    """A long poll outlasts every deadline of requests; so does an idle stream."""
    async with open_api(tmp_path, limits=ConnectionLimits(head_seconds=0.1, window_seconds=0.1)) as broker:
        task = await broker.add_task()
        assert (await broker.client.get(f"/api/task/{task.id}?wait=0.5")).status_code == 200
        async with broker.client.stream("GET", f"/api/task/{task.id}/events") as answer:
            await asyncio.sleep(0.4)
            await broker.change_task(task, state=TaskState.CANCELED, ended_at=5.0)
            assert '"canceled"' in "".join([text async for text in answer.aiter_text()])


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
async def test_unread_body_is_not_timed_out(parser: str, expect: bytes) -> None:
    """A client that must pause, or wait for 100 Continue, is not slow."""

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.6)
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"done"})

    protocol = partial(new_protocol, parser, busy, window_seconds=0.1)
    async with await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with closing(writer):
            writer.write(b"POST / HTTP/1.1\r\n" + HOST + expect + b"Content-Length: 3000000\r\n\r\n")
            if expect:
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            writer.write(b"x" * 3_000_000)
            assert b"done" in await reader.read()


async def test_keep_alive_connection_outlasts_the_head_deadline(tmp_path: Path) -> None:
    """One connection, many requests, longer than a head may take."""
    async with open_api(tmp_path, limits=ConnectionLimits(head_seconds=0.2)) as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        with closing(writer):
            for _ in range(6):
                writer.write(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                await reader.readuntil(b"}")
                await asyncio.sleep(0.08)


async def test_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    """Otherwise a few of them occupy all memory and file descriptors."""
    async with open_api(tmp_path, limits=QUICK) as broker:
        image = await broker.add_image("task_x", os.urandom(2**20) * 24)
        with closing(socket.socket()) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", broker.port))
            request = f"GET /uploads/images/{image.name} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            await asyncio.get_running_loop().sock_sendall(sock, request.encode())
            async with asyncio.timeout(5):
                await asyncio.sleep(1.5)
                got = 0
                while chunk := await _drain(sock):
                    got += len(chunk)
        assert got < image.size


async def _drain(sock: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(sock, 2**20)
    except ConnectionError:
        return b""


async def test_long_poll_ends_when_its_client_disconnects(tmp_path: Path) -> None:
    """The request ends at once, not after its thirty seconds."""
    async with open_api(tmp_path, sockets=True) as broker:
        task = await broker.add_task()
        _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write(f"GET /api/task/{task.id}?wait=30 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await broker.wait_for_listener(task)
        writer.close()
        async with asyncio.timeout(3):
            await broker.wait_for_no_listener(task)


async def test_aborted_upload_leaves_no_task_and_no_file(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True) as broker:
        before = await broker.stored_counts()
        head = (
            POST.replace(b"application/json", b"multipart/form-data; boundary=x") + b"Content-Length: 5000000\r\n\r\n"
        )
        part = (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + png() + b"x" * 3_000_000
        )
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
            writer.write(head + part)
            await writer.drain()
            writer.close()
        assert (await broker.client.get("/health")).status_code == 200
        assert await broker.stored_counts() == before


# -- malformed requests


MALFORMED_REQUESTS = [
    ("junk", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    ("blank line", b"\r\nGET /health HTTP/1.1\r\n"),
    ("no version", b"GET /health\r\n\r\n"),
    ("no host", b"GET /health HTTP/1.1\r\n\r\n"),
    ("two hosts", b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n"),
    ("framed twice", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("framed twice, other way", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    ("two lengths", POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
    ("negative length", POST + b"Content-Length: -1\r\n\r\n"),
    ("length in words", POST + b"Content-Length: many\r\n\r\n"),
    ("huge length", POST + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n"),
    ("another coding", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    ("bad chunk", POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    ("large header", b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 40_000 + b"\r\n\r\n"),
    ("many headers", b"GET /health HTTP/1.1\r\n" + HOST + b"X: x\r\n" * 10_000 + b"\r\n"),
    ("large target", b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("control in header", b"GET /health HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n"),
    ("space before colon", b"GET /health HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n"),
]


async def test_malformed_request_is_rejected_and_closed(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True) as broker:
        for what, data in MALFORMED_REQUESTS:
            answer = await broker.send_raw(data)
            assert answer.startswith(b"HTTP/1.1 400 "), what
            assert b'"success":false' in answer, what
            assert b"uvicorn" not in answer
        assert (await broker.client.get("/health")).status_code == 200


async def test_bad_chunk_after_the_response_closes_the_connection(tmp_path: Path) -> None:
    """The response was sent already, so only the connection is left to end."""
    async with open_api(tmp_path, sockets=True) as broker:
        data = b"POST /nope HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        with closing(writer):
            writer.write(data)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
            writer.write(b"zz\r\nzz\r\n")
            async with asyncio.timeout(5):
                while await _read(reader):
                    pass


async def test_upgrade_is_answered_as_a_plain_request(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True) as broker:
        upgrade = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"
        answer = await broker.send_raw(b"GET /api/tasks HTTP/1.1\r\n" + HOST + upgrade + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_100_continue_is_sent_when_the_body_is_read(tmp_path: Path) -> None:
    """A rejected request gets none: its upload is not sent."""
    async with open_api(tmp_path, sockets=True) as broker:
        body = b'{"prompt":"x"}'
        head = POST + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n" % len(body)
        accepted = await broker.send_raw(head + b"\r\n" + body)
        assert b"HTTP/1.1 202 " in accepted
        rejected = await broker.send_raw(head + b"Via: 1.1 x\r\n\r\n")
        assert rejected.startswith(b"HTTP/1.1 401 ")


# -- connections per address


async def test_connections_per_address_are_limited(parser: str) -> None:
    """Loopback is exempt: tunnels and proxies connect from it. A closed connection frees its slot."""
    peers = Counter[str]()

    def open_pipe(peer: str) -> tuple[Any, MemoryTransport]:
        pipe = MemoryTransport(peer)
        return connect(parser, lambda: None, pipe, max_per_peer=3, peers=peers), pipe

    many = [open_pipe("203.0.113.5") for _ in range(5)]
    assert [pipe.is_aborted for _, pipe in many] == [False, False, False, True, True]
    other, pipe = open_pipe("203.0.113.6")
    assert not pipe.is_aborted
    local = [open_pipe(peer) for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] * 3]
    assert not any(pipe.is_aborted for _, pipe in local)
    for protocol, _ in many:
        protocol.connection_lost(None)
    assert peers == {"203.0.113.6": 1}
    again, pipe = open_pipe("203.0.113.5")
    assert not pipe.is_aborted
    for protocol in (other, again, *(protocol for protocol, _ in local)):
        protocol.connection_lost(None)
    assert not peers


# -- the socket


def test_taken_port_names_the_variable() -> None:
    with closing(bind_socket("127.0.0.1", 0)) as sock, pytest.raises(SettingsError, match="BROKER_PORT"):
        bind_socket("127.0.0.1", socket_port(sock))


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "x" * 300, "::ffff:203.0.113.7"])
def test_foreign_address_names_the_variable(host: str) -> None:
    with pytest.raises(SettingsError, match="BROKER_HOST"):
        bind_socket(host, 0)


def test_accepted_sockets_have_nodelay() -> None:
    """Without it every response of two packets waits 40 ms for the client's acknowledgement."""
    with closing(bind_socket("127.0.0.1", 0)) as sock, socket.create_connection(sock.getsockname()) as client:
        connection, _ = sock.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert client


async def test_connection_that_the_client_closed_is_not_looked_at_again(tmp_path: Path) -> None:
    """The timer of an idle connection ends after its socket is closed; an exception there fails this test."""
    async with open_api(tmp_path, limits=ConnectionLimits(idle_seconds=1)) as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await asyncio.sleep(1.2)
