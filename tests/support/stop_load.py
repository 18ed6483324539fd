"""Requests to servers until they refuse connections, from a process of their own: `python -m tests.support.stop_load`.

Each line of standard input is the port of a server. When all clients of a server have been refused, one line of JSON
counts what became of their requests.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

HOST = b"Host: 127.0.0.1\r\n"
BODY = b'{"prompt":"x","dryRun":true}'
GET = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /api/generate/image HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
REQUESTS = (GET, GET, GET, POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
WAIT_SECONDS = 15.0
"""For a connection and for a response; longer than any stop."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """Behaviour of some clients. pause_seconds: the longest pause before a request."""

    count: int
    keeps_alive: bool
    pause_seconds: float = 0.0


CLIENTS = (
    Client(count=8, keeps_alive=False),
    Client(count=8, keeps_alive=False, pause_seconds=0.03),
    Client(count=4, keeps_alive=True),
    Client(count=8, keeps_alive=True, pause_seconds=0.03),
)


async def count_requests(port: int) -> Counter[str]:
    """Send until the server refuses every client."""
    counts: Counter[str] = Counter()
    clients = [client for client in CLIENTS for _ in range(client.count)]
    await asyncio.gather(*(_send_until_refused(port, client, counts) for client in clients))
    return counts


async def _send_until_refused(port: int, client: Client, counts: Counter[str]) -> None:
    while True:
        with closing(socket.socket()) as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connecting = asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            try:
                await asyncio.wait_for(connecting, WAIT_SECONDS)
            except ConnectionRefusedError:
                counts["refused"] += 1
                return
            await _use_connection(sock, client, counts)


async def _use_connection(sock: socket.socket, client: Client, counts: Counter[str]) -> None:
    is_last = False
    while not is_last:
        await asyncio.sleep(random.uniform(0, client.pause_seconds))
        if _is_closed(sock):
            counts["closed before the request"] += 1
            return
        try:
            head = await asyncio.wait_for(_exchange(sock, random.choice(REQUESTS)), WAIT_SECONDS)
        except (OSError, EOFError) as error:
            counts["lost"] += 1
            counts[f"lost: {type(error).__name__}"] += 1
            return
        counts["answered"] += 1
        is_announced = b"\r\nconnection: close\r\n" in head
        counts["announced"] += is_announced
        is_last = is_announced or not client.keeps_alive


def _is_closed(sock: socket.socket) -> bool:
    """Check before the request, as HTTP clients do."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def _exchange(sock: socket.socket, request: bytes) -> bytes:
    """Send a request, receive the complete response, and return its head in lower case."""
    await asyncio.get_running_loop().sock_sendall(sock, request)
    received = b""
    while b"\r\n\r\n" not in received:
        received += await _receive(sock)
    head, _, body = received.lower().partition(b"\r\n\r\n")
    length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += await _receive(sock)
    return head + b"\r\n"


async def _receive(sock: socket.socket) -> bytes:
    data = await asyncio.get_running_loop().sock_recv(sock, 65536)
    if not data:
        raise EOFError
    return data


@dataclass(frozen=True, kw_only=True)
class Load:
    """The process of the clients."""

    process: asyncio.subprocess.Process

    async def begin(self, port: int) -> None:
        """Begin to send requests to the port."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{port}\n".encode())
        await self.process.stdin.drain()

    async def end(self) -> Counter[str]:
        """Wait until one server has refused all its clients, and return their counts."""
        assert self.process.stdout is not None
        return Counter(json.loads(await self.process.stdout.readline()))


@asynccontextmanager
async def running_load() -> AsyncIterator[Load]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Load(process=process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def main() -> None:
    async def report(port: int) -> None:
        sys.stdout.write(json.dumps(await count_requests(port)) + "\n")
        sys.stdout.flush()

    async with asyncio.TaskGroup() as reports:
        while line := await asyncio.to_thread(sys.stdin.readline):
            reports.create_task(report(int(line)))


if __name__ == "__main__":
    asyncio.run(main())
