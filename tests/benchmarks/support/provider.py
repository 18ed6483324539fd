"""The pretend provider, raw asyncio in a process of its own: kie.ai's API, its callbacks, and a file server.

`python -m tests.benchmarks.support.provider PORT IMAGE --webhook-key KEY` serves until SIGTERM. It takes every order,
ends each job a moment later with the image file, and calls back over kept-alive connections with the token of the
callback URL and kie.ai's signature. `/control/…` is for the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import parse_qs, urlsplit

import uvloop

from webhooks.signatures.job_id_hmac import JobIdHmac

MAX_CALLS_AT_ONCE: Final = 64
SIGNATURE_HEADERS: Final = ("x-webhook-signature", "x-webhook-timestamp")


def signer(webhook_key: str) -> JobIdHmac:
    """Return the signer of the provider's callbacks."""
    signature, timestamp = SIGNATURE_HEADERS
    return JobIdHmac(key=webhook_key.encode(), signature_header=signature, timestamp_header=timestamp)


def http_response(body: bytes, media_type: str = "application/json", status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (
        status.encode(),
        media_type.encode(),
        len(body),
        body,
    )


@dataclass
class Job:
    """One accepted order. Moments are monotonic: the clock of all processes of the machine."""

    id: str
    callback_url: str
    received_at: float
    called_at: float = 0.0
    acknowledged_at: float = 0.0

    @property
    def task_id(self) -> str:
        return parse_qs(urlsplit(self.callback_url).query).get("task", [""])[0]


@dataclass
class World:
    """The provider's state. delay: seconds from the order to the callback; None: it waits for /control/release."""

    port: int
    image: bytes
    media_type: str
    signer: JobIdHmac
    delay: float | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    downloads: int = 0
    connections: int = 0
    calls: deque[Job] = field(default_factory=deque)
    idle: list[Caller] = field(default_factory=list)
    callers: int = 0

    def __post_init__(self) -> None:
        self.image_response = http_response(self.image, self.media_type)

    def create(self, body: bytes) -> bytes:
        order = json.loads(body)
        job = Job(id=f"job{len(self.jobs):029x}", callback_url=order.get("callBackUrl") or "", received_at=monotonic())
        self.jobs[job.id] = job
        if self.delay is not None:
            asyncio.get_running_loop().call_later(self.delay, self.call, job)
        return http_response(b'{"code":200,"msg":"success","data":{"taskId":"%s"}}' % job.id.encode())

    def call(self, job: Job) -> None:
        """Call back about the success of a job, over a connection that is free, or a new one."""
        if self.idle:
            self.idle.pop().send(job)
            return
        self.calls.append(job)
        if self.callers < MAX_CALLS_AT_ONCE:
            self.callers += 1
            address = urlsplit(job.callback_url)
            host, port = address.hostname or "", address.port or 80
            connecting = asyncio.get_running_loop().create_connection(lambda: Caller(self), host, port)
            task = asyncio.ensure_future(connecting)
            _CONNECTING.add(task)
            task.add_done_callback(_CONNECTING.discard)

    def record(self, job_id: str, *, ended: bool) -> dict[str, Any]:
        result = json.dumps({"resultUrls": [f"http://127.0.0.1:{self.port}/image/{job_id}.png"]})
        now = int(time.time() * 1000)
        return {
            "taskId": job_id,
            "model": "google/nano-banana",
            "state": "success" if ended else "generating",
            "param": "{}",
            "resultJson": result if ended else "",
            "failCode": "",
            "failMsg": "",
            "costTime": 1 if ended else None,
            "completeTime": now if ended else None,
            "createTime": now,
            "updateTime": now,
            "creditsConsumed": 4,
        }

    def answer(self, method: str, target: str, body: bytes) -> bytes:
        path, _, query = target.partition("?")
        if path.startswith("/image/"):
            self.downloads += 1
            return self.image_response
        if method == "POST" and path.endswith("/createTask"):
            return self.create(body)
        if path.endswith("/recordInfo"):
            job = self.jobs.get(query.removeprefix("taskId="))
            record = self.record(query.removeprefix("taskId="), ended=job is not None and job.called_at > 0)
            return http_response(json.dumps({"code": 200, "msg": "success", "data": record}).encode())
        if path.startswith("/control/"):
            return http_response(json.dumps(self.control(path.removeprefix("/control/"), body)).encode())
        return http_response(b'{"code":200,"msg":"success","data":100000}')

    def control(self, action: str, body: bytes) -> Any:
        options: Mapping[str, Any] = json.loads(body or b"{}")
        match action:
            case "delay":
                self.delay = options["seconds"]
            case "image":
                file = Path(options["file"])
                self.image_response = http_response(file.read_bytes(), "image/png")
            case "release":
                for job in self.jobs.values():
                    if not job.called_at:
                        self.call(job)
            case "forget":
                self.jobs.clear()
            case "jobs":
                return [
                    [job.task_id, job.received_at, job.called_at, job.acknowledged_at] for job in self.jobs.values()
                ]
        acknowledged = sum(job.acknowledged_at > 0 for job in self.jobs.values())
        counts = {"jobs": len(self.jobs), "acknowledged": acknowledged}
        return counts | {"downloads": self.downloads, "connections": self.connections}


_CONNECTING: set[asyncio.Future[Any]] = set()


def monotonic() -> float:
    return time.monotonic()


class Http(asyncio.Protocol):
    """Framing of HTTP/1.1 messages with a Content-Length."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has another base class

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:end]
            start = head.lower().find(b"\r\ncontent-length:")
            length = 0 if start < 0 else int(head[start + 17 :].split(b"\r\n", 1)[0])
            if len(buffer) < end + 4 + length:
                break
            self.message_received(head, buffer[end + 4 : end + 4 + length])
            buffer = buffer[end + 4 + length :]
        self._buffer = buffer

    def message_received(self, head: bytes, body: bytes) -> None:
        raise NotImplementedError


class Server(Http):
    """A connection of a client of the provider."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        world.connections += 1

    def message_received(self, head: bytes, body: bytes) -> None:
        method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        self.transport.write(self._world.answer(method, target, body))
        if b"\r\nconnection: close" in head.lower():
            self.transport.close()


class Caller(Http):
    """A kept-alive connection to the broker for callbacks."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._job: Job | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._next()

    def send(self, job: Job) -> None:
        world, address = self._world, urlsplit(job.callback_url)
        self._job = job
        record = {"code": 200, "msg": "Playground task completed successfully."}
        body = json.dumps(record | {"data": world.record(job.id, ended=True)}).encode()
        signature = "".join(f"{name}: {value}\r\n" for name, value in world.signer.sign(job.id, time.time()).items())
        head = (
            f"POST {address.path}?{address.query} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Content-Type: application/json\r\n{signature}Content-Length: {len(body)}\r\n\r\n"
        )
        job.called_at = monotonic()
        self.transport.write(head.encode() + body)

    def message_received(self, head: bytes, body: bytes) -> None:
        if self._job is not None and b" 200 " in head[:16]:
            self._job.acknowledged_at = monotonic()
        self._job = None
        if b"\r\nconnection: close" in head.lower():
            self.transport.close()
        else:
            self._next()

    def _next(self) -> None:
        if self._world.calls:
            self.send(self._world.calls.popleft())
        else:
            self._world.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        world = self._world
        world.callers -= 1
        with suppress(ValueError):
            world.idle.remove(self)
        if self._job is not None and not self._job.acknowledged_at:
            world.call(self._job)


async def serve(world: World) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: Server(world), "127.0.0.1", world.port, backlog=1024, reuse_address=True
    )
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.support.provider")
    parser.add_argument("port", type=int)
    parser.add_argument("image", type=Path)
    parser.add_argument("--webhook-key", required=True)
    chosen = parser.parse_args()
    image = chosen.image.read_bytes()
    uvloop.run(serve(World(port=chosen.port, image=image, media_type="image/png", signer=signer(chosen.webhook_key))))


if __name__ == "__main__":
    main()
