"""Which order an equal request gets when an answer is cut off in unusual ways: none is paid twice or mixed up."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from broker.api.http.auth import Authenticator
from broker.api.http.endpoint import Dialect, Endpoint, json_success
from broker.api.shared.detail_errors import DetailError, render_detail_error
from broker.api.shared.held_answers import HeldAnswers
from broker.logs import LogEvent
from broker.ordering.answers import OpenAnswers
from broker.ordering.idempotency import FoundRecord, Idempotency
from broker.orders import ImageParams, OrderRequest
from broker.sandbox.engine import Options
from broker.server.deadlines import ConnectionLimits
from broker.services import Services
from storage.errors import StorageError
from storage.idempotency import IdempotencyRecord, IdempotencyRecords
from storage.sql.database import Database
from storage.tasks import Task
from tests.support.brokers import RunningBroker, open_broker, still
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

BEAT = 0.1


class SlowRecords(IdempotencyRecords):
    """Records in a database whose first answer arrives late, as over a network."""

    written = asyncio.Event()
    released = asyncio.Event()

    async def insert_if_absent(self, new: IdempotencyRecord) -> bool:
        inserted = await super().insert_if_absent(new)
        if not self.written.is_set():
            self.written.set()
            await self.released.wait()
        return inserted


@dataclass
class Process:
    """What one process of a broker knows of answers."""

    database: Database
    senders: Any
    clock: ManualClock
    records_type: type[IdempotencyRecords] = IdempotencyRecords
    answers: OpenAnswers = field(init=False)

    def __post_init__(self) -> None:
        records = self.records_type(self.database)
        self.answers = OpenAnswers(clock=self.clock, records=records, senders=self.senders, beat_seconds=BEAT)

    async def find(self, retry_count: int = 0, retry_seconds: float | None = 600.0) -> FoundRecord:
        """Return the record of a request; all requests are equal."""
        idempotency = Idempotency(clock=self.clock, records=self.answers.records, answers=self.answers)
        return await idempotency.find_record(
            "me", "print", key=None, retry_count=retry_count, retry_seconds=retry_seconds
        )


@dataclass
class Cluster:
    """Processes on one database."""

    services: Services
    stack: AsyncExitStack

    def start(self, **fields: Any) -> Process:
        clock = fields.pop("clock", None) or ManualClock(time.time())
        process = Process(self.services.database, self.services.answers.senders, clock, **fields)
        self.stack.push_async_callback(process.answers.aclose)
        return process


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with still(tmp_path, ManualClock(time.time())) as services, AsyncExitStack() as stack:
        yield Cluster(services, stack)


def keys(*found: FoundRecord) -> list[str]:
    return [one.record.key for one in found]


async def leave(process: Process, found: FoundRecord) -> None:
    assert found.answer is not None
    await process.answers.leave(found.answer)


async def finish(process: Process, found: FoundRecord) -> None:
    assert found.answer is not None
    await process.answers.finish(found.answer)


async def test_retry_joins_the_try_that_was_cut_off_before_one_that_is_still_answered(cluster: Cluster) -> None:
    one = cluster.start()
    lost, waiting = await one.find(), await one.find()
    await leave(one, lost)
    again = await one.find(retry_count=1)
    assert keys(again) == keys(lost) != keys(waiting)


async def test_answer_that_was_cut_off_is_found_among_many_that_are_still_awaited(cluster: Cluster) -> None:
    one = cluster.start()
    lost = await one.find()
    await asyncio.gather(*(one.find() for _ in range(25)))
    await leave(one, lost)
    assert keys(await one.find()) == keys(lost)


async def test_answer_that_nobody_waits_for_does_not_end_the_order_of_the_retry(cluster: Cluster) -> None:
    """A proxy read the first answer though its client had left; the retry took the order over, and was cut off."""
    for second in (cluster.start(), None):
        one = cluster.start()
        other = second or one
        first = await one.find()
        retry = await other.find(retry_count=1)
        await finish(one, first)
        await leave(other, retry)
        last = await other.find(retry_count=2)
        assert keys(first) == keys(retry) == keys(last)
        await finish(other, last)


async def test_process_whose_clock_is_behind_is_not_taken_for_dead(cluster: Cluster) -> None:
    now = time.time()
    one, ahead = cluster.start(clock=ManualClock(now)), cluster.start(clock=ManualClock(now + 5))
    first = await one.find()
    assert keys(await ahead.find()) != keys(first), "the first is still answered"


async def test_process_that_waited_for_another_to_die_is_seen_alive_itself(cluster: Cluster) -> None:
    dead, one, other = (cluster.start() for _ in range(3))
    first = await dead.find()
    await cluster.services.database.execute("UPDATE idempotency SET sender = 'killed'")
    await cluster.services.answers.senders.mark_seen("killed", time.time())
    joined = await one.find()
    assert keys(joined) == keys(first)
    assert keys(await other.find()) != keys(joined), "the process that took it over sends its answer"


async def test_equal_request_does_not_take_a_record_that_another_is_just_reserving(cluster: Cluster) -> None:
    one = cluster.start(records_type=SlowRecords)
    first = asyncio.create_task(one.find())
    await SlowRecords.written.wait()
    second = await one.find()
    SlowRecords.released.set()
    assert keys(second) != keys(await first)


@pytest.mark.parametrize(("retry_seconds", "window"), [(600.0, 600.0), (None, 10.0)])
async def test_order_is_joined_within_the_window_after_its_last_answer_however_old_it_is(
    cluster: Cluster, retry_seconds: float | None, window: float
) -> None:
    """A client that waits a minute at a time, for an order that takes longer than all windows."""
    one = cluster.start()
    first = await one.find(retry_seconds=retry_seconds)
    await leave(one, first)
    for _ in range(5):
        one.clock.advance(window - 1)
        again = await one.find(retry_seconds=retry_seconds)
        assert keys(again) == keys(first)
        await leave(one, again)
    one.clock.advance(window + 1)
    assert keys(await one.find(retry_seconds=retry_seconds)) != keys(first)


async def test_retry_does_not_join_an_order_of_a_process_that_died_long_ago(cluster: Cluster) -> None:
    one, other = cluster.start(), cluster.start()
    first = await one.find()
    await cluster.services.database.execute("UPDATE idempotency SET sender = 'killed'")
    await cluster.services.answers.senders.mark_seen("killed", time.time() - 601)
    assert keys(await other.find(retry_count=1)) != keys(first)


# -- over HTTP


class FaultyOrder(BaseModel):
    prompt: str


@dataclass
class FaultyRoute:
    """A synchronous route whose first answers fail with the store, and whose others begin with blank lines soon."""

    held: HeldAnswers
    failures: int

    async def make_faulty(self, request: Request) -> Response:
        """Make an image."""
        body = FaultyOrder.model_validate_json(await request.body())
        order = OrderRequest(params=ImageParams(prompt=body.prompt))
        placed = await self.held.place(request, order)
        return await self.held.answer(request, placed, self._render, render_late=lambda error: {"late": error.code})

    async def _render(self, tasks: Sequence[Task]) -> Response:
        self.failures -= 1
        if self.failures >= 0:
            raise StorageError("the database is out of reach")
        return JSONResponse({"task": tasks[0].id})


def faulty_dialect(services: Services, *, failures: int, blanks_after: float) -> Dialect:
    held = HeldAnswers(
        orders=services.orders,
        queries=services.queries,
        hold_seconds=20.0,
        blanks_after_seconds=blanks_after,
        blank_seconds=0.05,
    )
    endpoint = Endpoint(
        "POST",
        "/faulty",
        FaultyRoute(held, failures).make_faulty,
        access="caller",
        tag="faulty",
        responses={200: json_success("the image", {"type": "object"})},
    )
    return Dialect(
        name="faulty",
        authenticate=Authenticator.from_services(services).authenticate,
        render_error=partial(render_detail_error, services.presenter.messages),
        error_model=DetailError,
        endpoints=[endpoint],
    )


def faulty(*, failures: int = 0, blanks_after: float = 10.0, duration: float = 0.1) -> Mapping[str, Any]:
    dialect = partial(faulty_dialect, failures=failures, blanks_after=blanks_after)
    return {"extra_dialects": [dialect], "options": Options(duration=duration, creates_per_window=10_000)}


async def post(broker: RunningBroker, **headers: str) -> Any:
    return await broker.client.post("/faulty", json={"prompt": "a red fox"}, headers=headers)


async def test_paid_order_whose_answer_failed_with_the_store_is_answered_to_the_next_request(tmp_path: Path) -> None:
    async with open_broker(tmp_path, **faulty(failures=1)) as broker:
        failed = await post(broker)
        assert (failed.status_code, failed.headers["x-should-retry"]) == (503, "true")
        answer = await post(broker)
        assert (answer.status_code, answer.json()["task"]) == (200, failed.headers["x-request-id"])
        assert len(await broker.provider_jobs()) == 1


async def test_answer_that_fails_with_the_store_after_blank_lines_ends_as_json(tmp_path: Path) -> None:
    async with open_broker(tmp_path, **faulty(failures=1, blanks_after=0.01)) as broker:
        failed = await post(broker)
        assert (failed.status_code, failed.json()) == (200, {"late": "unavailable"})
        answer = await post(broker)
        assert answer.json()["task"] == failed.headers["x-request-id"]
        assert len(await broker.provider_jobs()) == 1


def request_bytes(port: int, prompt: str = "a red fox", path: str = "/faulty") -> bytes:
    body = json.dumps({"prompt": prompt}).encode()
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{kind}\r\n\r\n".encode() + body


async def test_client_that_leaves_between_blank_lines_is_no_error(tmp_path: Path, log_lines: list[LogEvent]) -> None:
    async with open_broker(tmp_path, **faulty(blanks_after=0.01, duration=0.4)) as broker:
        port = broker.client.base_url.port or 0
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(port))
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        answer = await post(broker)
        assert answer.status_code == 200
        assert len(await broker.provider_jobs()) == 1
    assert "request_failed" not in {line["action"] for line in log_lines}


@pytest.mark.parametrize(("after", "is_closed"), [(2.3, True), (0.3, False)])
async def test_answer_that_waits_in_buffers_for_a_slow_reader_is_not_taken_for_read(
    tmp_path: Path, after: float, is_closed: bool
) -> None:
    """The client ends the connection while the network still holds its answer, whose last byte was handed over."""
    async with open_broker(tmp_path, options=Options(duration=0.05, creates_per_window=10_000)) as broker:
        port, loop = broker.client.base_url.port or 0, asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, request_bytes(port, path="/generate"))
            await loop.sock_recv(client, 1)
            await asyncio.sleep(after)
            if is_closed:
                client.close()
            else:
                client.shutdown(socket.SHUT_WR)
                await asyncio.sleep(0.05)
            answer = await broker.client.post("/generate", json={"prompt": "a red fox"})
        assert answer.status_code == 200
        assert len(answer.content) > 20_000, "more than the receive buffer"
        assert len(await broker.provider_jobs()) == 1


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_answer_that_a_slow_reader_gets_at_last_was_read(tmp_path: Path, connection: str) -> None:
    """It takes the client longer than an idle connection, or one whose end was sent, stays open."""
    limits = ConnectionLimits(head_seconds=0.3, idle_seconds=1, last_request_seconds=0.01)
    options = Options(duration=0.05, creates_per_window=10_000)
    async with open_broker(tmp_path, options=options, limits=limits) as broker:
        port, loop = broker.client.base_url.port or 0, asyncio.get_running_loop()
        head = request_bytes(port, path="/generate").replace(b"\r\n", f"\r\nConnection: {connection}\r\n".encode(), 1)
        received = b""
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, head)
            while chunk := await loop.sock_recv(client, 1024):
                received += chunk
                await asyncio.sleep(0.04)
        assert json.loads(received.partition(b"\r\n\r\n")[2])["images"]
        answer = await broker.client.post("/generate", json={"prompt": "a red fox"})
        assert (answer.status_code, len(await broker.provider_jobs())) == (200, 2)


async def test_order_whose_images_are_gone_is_told_once_and_then_made_again(tmp_path: Path) -> None:
    async with open_broker(tmp_path, options=Options(duration=0.1, creates_per_window=10_000)) as broker:
        port, order = broker.client.base_url.port or 0, {"prompt": "a red fox"}
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(port, path="/generate"))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        async with asyncio.timeout(10):
            while not (tasks := (await broker.client.get("/api/tasks?status=completed")).json()["data"]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await broker.services.blobs.delete(tasks[0]["id"])
        gone = await broker.client.post("/generate", json=order)
        assert (gone.status_code, gone.headers["x-request-id"]) == (410, tasks[0]["id"]), gone.text
        again = await broker.client.post("/generate", json=order)
        assert (again.status_code, len(await broker.provider_jobs())) == (200, 2)


async def test_order_that_was_cut_off_in_one_dialect_is_not_joined_in_another(tmp_path: Path) -> None:
    """The later answers and the webhook of an order have the terms of the dialect in which it was made."""
    async with open_broker(tmp_path, options=Options(duration=0.3, creates_per_window=10_000)) as broker:
        port, order = broker.client.base_url.port or 0, {"prompt": "a red fox", "model": "nano-banana"}
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(port, path="/v1/images/generations"))
        try:
            async with asyncio.timeout(10):
                while len(await broker.provider_jobs()) == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        finally:
            writer.close()
        answer = await broker.client.post("/v1/models/google/nano-banana/predictions", json={"input": order})
        assert answer.status_code in {200, 201, 202}, answer.text
        key = {"Idempotency-Key": "k"}
        made = await broker.client.post("/v1/images/generations", json={"prompt": "a cat"}, headers=key)
        other = await broker.client.post(
            "/v1/models/google/nano-banana/predictions", json={"input": {"prompt": "a cat"}}, headers=key
        )
        assert (made.status_code, other.status_code) == (200, 422), other.text
        await broker.wait_end(answer.json()["id"])
        assert len(await broker.provider_jobs()) == 3
