"""Latency of honest polls under hostile traffic in tiny pieces: `python -m tests.benchmarks.engines.hostile`.

One broker process, eight hostile connections of one kind, and a client in a process of its own that polls a task at a
steady rate. The hostile peers are clients of the broker, or the provider and its file server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.engines.measuring import Child, Side, cut, ms, say, table
from tests.support.faulty_http import Visit, head, serve
from tests.support.process import Broker, environment, serving
from tests.support.servers.ports import free_port

CONNECTIONS: Final = 8
BYTES_PER_SECOND: Final = 1_000_000
"""Of each hostile connection."""
SECONDS: Final = 8.0
WARM_UP_SECONDS: Final = 1.5
TICK_SECONDS: Final = 0.02
POLL_SECONDS: Final = 0.2
POLLERS: Final = 8
TASKS: Final = 24
"""Enough that a hostile provider or file server is always asked for one more."""
MAX_P99_SECONDS: Final = 0.05

CHUNKS: Final = b"1\r\nx\r\n" * 400_000
EARLY_HINTS: Final = b"HTTP/1.1 103 \r\n\r\n" * 100_000
HEAD: Final = ("hostile traffic", "polls", "p50 ms", "p99 ms", "max ms", "hostile MB", "broker CPU %")


def post(path: str, framing: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{framing}\r\n\r\n".encode()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def with_length(path: str, body: bytes) -> bytes:
    return post(path, f"Content-Length: {len(body)}") + body


def with_head(body: bytes) -> bytes:
    return head("200 OK", f"Content-Length: {len(body)}", "Connection: close") + body


def lists(size: int) -> bytes:
    return b"[" + b",".join([b"[]"] * (size // 3)) + b"]"


def objects(size: int) -> bytes:
    return b"[" + b",".join([b"{}"] * (size // 3)) + b"]"


HEALTH: Final = get("/health")
WEBHOOK: Final = "/api/webhook/nano-banana"
IN_CHUNKS: Final = "Transfer-Encoding: chunked"
REQUESTS: Final[dict[str, bytes]] = {
    "callback in chunks of a byte": post(WEBHOOK, IN_CHUNKS) + CHUNKS,
    "unread body in chunks of a byte": post("/nope", IN_CHUNKS) + CHUNKS,
    "callback of 240 kB of lists": with_length(WEBHOOK, lists(240_000)),
    "callback of 240 kB of objects": with_length(WEBHOOK, objects(240_000)),
    "callback with JSON in a string": with_length(WEBHOOK, json.dumps({"data": lists(240_000).decode()}).encode()),
    "order of 400 kB of lists": with_length("/api/generate/image", b'{"prompt": "x", "y": ' + lists(400_000) + b"}"),
    "order of 400 kB of long numbers": with_length(
        "/api/generate/image", b'{"prompt": "x", "y": [' + b",".join([b"9" * 4000] * 100) + b"]}"
    ),
    "junk": random.Random(1).randbytes(2_000_000),
    "thousands of header lines": HEALTH[:-2] + b"a: b\r\n" * 300_000,
    "pipelined requests": HEALTH * 20_000,
    "pipelined polls of unknown tasks": get("/api/task/task_0") * 20_000,
    "pipelined requests of 99 header lines": (HEALTH[:-2] + b"a: b\r\n" * 98 + b"\r\n") * 1_500,
    "pipelined requests, answers not read": HEALTH * 20_000,
}
READ: Final = {"pipelined requests", "pipelined polls of unknown tasks", "pipelined requests of 99 header lines"}
"""Kinds whose clients read one answer after the other."""
UNREAD: Final = {"pipelined requests, answers not read"}
"""Kinds whose clients read no answer."""
RESPONSES: Final[dict[str, tuple[str, bytes]]] = {
    "result in chunks of a byte": ("/result", head("200 OK", IN_CHUNKS) + CHUNKS),
    "103 responses of the file server": ("/result", EARLY_HINTS),
    "status in chunks of a byte": ("/recordInfo", head("200 OK", IN_CHUNKS) + CHUNKS),
    "103 responses of the provider": ("/recordInfo", EARLY_HINTS),
    "status of 400 kB of lists": ("/recordInfo", with_head(lists(400_000))),
}
"""The path that is answered so; the provider's other answers are right."""


# -- hostile peers


@dataclass
class Sent:
    """Count of the hostile bytes that were sent."""

    size: int = 0


async def trickle(
    writer: asyncio.StreamWriter, data: bytes, rate: int, total: Sent, *, is_endless: bool = False
) -> None:
    """Send the bytes at that rate, once or again and again, until the other side closes."""
    sent, begun = 0, time.perf_counter()
    with suppress(ConnectionError):
        while not writer.is_closing():
            if is_endless and sent >= len(data):
                sent, begun = 0, time.perf_counter()
            piece = data[sent : int((time.perf_counter() - begun + TICK_SECONDS) * rate)]
            if sent >= len(data):
                break
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            total.size += len(piece)
            await asyncio.sleep(TICK_SECONDS)


async def send_requests(port: int, kind: str, rate: int, total: Sent) -> None:
    """Send the bytes again and again, each time on a new connection and until they are answered."""
    data = REQUESTS[kind]
    while True:
        with suppress(ConnectionError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            is_pipelined = kind in READ | UNREAD
            sending = asyncio.create_task(trickle(writer, data, rate, total, is_endless=is_pipelined))
            try:
                if kind in UNREAD:
                    await sending
                elif kind in READ:
                    await reader.read(-1)
                else:
                    await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                pass
            finally:
                sending.cancel()
                writer.close()


async def attack(side: Side, kind: str, port: int, rate: int) -> int:
    """Send hostile requests from go until stop; return the bytes sent."""
    total = Sent()
    await side.wait_for_go()
    clients = [asyncio.create_task(send_requests(port, kind, rate, total)) for _ in range(CONNECTIONS)]
    await side.wait_for_stop()
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return total.size


async def provide(side: Side, kind: str, port: int, rate: int) -> int:
    """Be a provider and its file server at that port; return the hostile bytes sent."""
    total, hostile = Sent(), asyncio.Semaphore(CONNECTIONS)
    hostile_path, hostile_bytes = RESPONSES.get(kind, ("", b""))
    result = json.dumps({"resultUrls": [f"http://127.0.0.1:{port}/result"]})

    async def script(visit: Visit) -> None:
        if hostile_path and hostile_path in visit.path:
            async with hostile:
                await trickle(visit.writer, hostile_bytes, rate, total)
            return
        state = "success" if hostile_path == "/result" else "generating"
        job_id = visit.path.partition("?taskId=")[2] or f"job{time.monotonic_ns()}"
        job = {"taskId": job_id, "state": state, "resultJson": result}
        body = json.dumps({"code": 200, "msg": "success", "data": job}).encode()
        await visit.send(head("200 OK", f"Content-Length: {len(body)}", "Connection: close"), body)

    async with serve(script, port=port):
        await side.wait_for_go()
        await side.wait_for_stop()
    return total.size


# -- honest polls


async def poll(side: Side, port: int, task_id: str) -> list[float]:
    """Poll the task at a steady rate; return the seconds of each poll, from the moment it was due."""
    latencies: list[float] = []
    await side.wait_for_go()
    begun = time.perf_counter()
    dues = [begun + POLL_SECONDS * number / POLLERS for number in range(POLLERS)]
    await asyncio.gather(*(_poll_from(due, side, port, task_id, latencies) for due in dues))
    return latencies


async def _poll_from(due: float, side: Side, port: int, task_id: str, latencies: list[float]) -> None:
    request = f"GET /api/task/{task_id} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while not side.stop.is_set():
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ValueError(answer)
        await reader.readexactly(_length(answer))
        latencies.append(time.perf_counter() - due)
        due += POLL_SECONDS
    writer.close()


def _length(answer: bytes) -> int:
    return next(int(line[15:]) for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))


# -- one run


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The polls of one run."""

    kind: str
    latencies: list[float]
    hostile_bytes: int
    cpu_share: float
    """CPU seconds of the broker per second."""

    @property
    def p99(self) -> float:
        return cut(self.latencies, 99)

    def row(self) -> tuple[object, ...]:
        values = self.latencies
        numbers = (ms(cut(values, 50)), ms(self.p99), ms(max(values)))
        return (self.kind, len(values), *numbers, f"{self.hostile_bytes / 1e6:.1f}", f"{self.cpu_share:.0%}")


async def measure(kind: str, folder: Path, *, seconds: float = SECONDS, rate: int = BYTES_PER_SECOND) -> Outcome:
    """Run one broker under one kind of traffic; an unknown kind is none."""
    provider_port, port = free_port(), free_port()
    more = {"BROKER_TASK_DEADLINE_SECONDS": "600", "BROKER_CHECK_AFTER_SECONDS": "0.2"}
    env = environment(folder, f"http://127.0.0.1:{provider_port}", port, **more)
    provider = Child(provide, kind, provider_port, rate)
    await provider.ready()
    async with serving(env, folder) as broker:
        task_id = await _create_tasks(broker)
        peers = [provider, *([Child(attack, kind, port, rate)] if kind in REQUESTS else [])]
        poller = Child(poll, port, task_id)
        for child in (*peers, poller):
            await child.ready()
        for child in peers:
            child.go()
        await asyncio.sleep(WARM_UP_SECONDS)
        poller.go()
        cpu_before, began = cpu_seconds(broker.process.pid), time.perf_counter()
        await asyncio.sleep(seconds)
        cpu_share = (cpu_seconds(broker.process.pid) - cpu_before) / (time.perf_counter() - began)
        latencies = await poller.result()
        hostile = sum([await peer.result() for peer in peers])
    return Outcome(kind=kind, latencies=latencies, hostile_bytes=hostile, cpu_share=cpu_share)


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _create_tasks(broker: Broker) -> str:
    for _ in range(TASKS):
        answer = await broker.client.post("/api/generate/image", json={"prompt": "x"})
        answer.raise_for_status()
    return str(answer.json()["taskId"])


async def main(seconds: float = SECONDS, rate: int = BYTES_PER_SECOND, only: str = "") -> None:
    """Print a table of all kinds whose name contains `only`. rate: bytes per second of each hostile connection."""
    say(f"\n{CONNECTIONS} hostile connections, {rate / 1e6:g} MB/s each; {POLLERS / POLL_SECONDS:g} polls a second\n")
    outcomes = []
    for kind in ("none", *REQUESTS, *RESPONSES):
        if only in kind:
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(await measure(kind, Path(folder), seconds=seconds, rate=rate))
    say(table(HEAD, [outcome.row() for outcome in outcomes]))
    slow = [outcome.kind for outcome in outcomes if outcome.p99 > MAX_P99_SECONDS]
    say(f"\np99 above {ms(MAX_P99_SECONDS)} ms: {', '.join(slow) or 'none'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument(
        "--rate", type=int, default=BYTES_PER_SECOND, help="bytes per second of each hostile connection"
    )
    parser.add_argument("--only", default="", help="part of the name of a kind")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.seconds, arguments.rate, arguments.only))
