"""Orders and callbacks: the reads, hops, commits and statements of each, and that none of them waits for another."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx
import pytest

from broker.api.native.tasks import TaskRoutes
from broker.app import build_app
from broker.bootstrap import load_settings, open_services
from broker.catalog import Catalog
from broker.ordering.routing import OrderRouter
from broker.orders import ImageParams, OrderRequest
from broker.services import Services
from broker.settings import Settings
from storage.attempts import Attempt
from storage.sql.database import Outcome, Row, Statement
from storage.sql.rows import changed_row, insert_row
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from storage.states import TaskState
from storage.task_queue import TaskQueue
from storage.tasks import Task
from tests.benchmarks.support.load import http_request
from tests.support.accounts import add_key_holder
from tests.support.http_parsers import MemoryTransport, connect
from webhooks.verification import IncomingCallback

pytestmark = pytest.mark.anyio

ORDER = {"prompt": "a red fox", "model": "nano-banana", "aspectRatio": "16:9"}
KEY = "a-key-of-the-operator-0123456789"
AT_ONCE = 64
REPEATS = 6
"""Of what is counted in calls."""


class CountingSqlite(SqliteDatabase):
    """reads: in the event loop; shared: those of all requests of a turn in one transaction; hops: reads in another
    thread; commits, and the statements in them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.counts: Counter[str] = Counter()
        self.all_at_once = asyncio.Event()
        """Set once `AT_ONCE` commits are counted."""

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        self.counts["hops"] += 1
        return await super().fetch(sql, **params)

    async def fetch_one(self, sql: str, **params: Any) -> Row | None:
        self.counts["reads"] += 1
        return await super().fetch_one(sql, **params)

    def fetch_at_once(self, sql: str, **params: Any) -> Sequence[tuple[Any, ...]] | None:
        self.counts["shared"] += 1
        return super().fetch_at_once(sql, **params)

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        self.counts["commits"] += 1
        if self.counts["commits"] == AT_ONCE:
            self.all_at_once.set()
        self.counts["statements"] += len(statements)
        return await super().transact(*statements, wake=wake)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A broker without a worker, so that every access to its database belongs to a request."""

    services: Services
    client: httpx.AsyncClient
    database: CountingSqlite
    headers: dict[str, str] = field(default_factory=dict)

    async def order(self, **more: Any) -> httpx.Response:
        response = await self.client.post("/api/generate/image", json={**ORDER, **more}, headers=self.headers)
        assert response.status_code == 202, response.text
        return response

    async def costs_of_order(self, **more: Any) -> dict[str, int]:
        """Return the costs of an order after an equal one, with which the time of the last use was written."""
        await self.order(**more)
        self.database.counts.clear()
        await self.order(**more)
        return dict(self.database.counts)


@asynccontextmanager
async def open_counted(folder: Path, **settings: Any) -> AsyncIterator[Counted]:
    defaults: dict[str, Any] = {
        "kie_keys": "a-key-of-kie-0123456789",
        "data_dir": folder,
        "webhook_base_url": "https://broker.example",
        "rate_per_minute": 100_000,
    }
    opened = list[CountingSqlite]()

    def open_database(chosen: Settings) -> CountingSqlite:
        opened.append(CountingSqlite(sqlite_path(chosen.database)))
        return opened[0]

    chosen = load_settings(env_file=None, isolated=True, **{**defaults, **settings})
    async with open_services(chosen, open_database=open_database) as services:
        transport = httpx.ASGITransport(build_app(services), client=("127.0.0.1", 50_000))
        async with httpx.AsyncClient(base_url="http://127.0.0.1:8000", transport=transport) as client:
            yield Counted(services=services, client=client, database=opened[0])


async def test_order_of_a_direct_call_costs_one_shared_read_and_one_commit_of_two_statements(tmp_path: Path) -> None:
    async with open_counted(tmp_path) as broker:
        costs = await broker.costs_of_order()
    assert costs == {"shared": 1, "commits": 1, "statements": 2}  # whether there are accounts; rate limit, task


async def test_order_with_a_key_of_the_operator_reads_nothing(tmp_path: Path) -> None:
    async with open_counted(tmp_path, api_keys=KEY) as broker:
        broker.headers["authorization"] = f"Bearer {KEY}"
        costs = await broker.costs_of_order()
    assert costs == {"commits": 1, "statements": 2}


@pytest.mark.parametrize(
    ("quota", "statements"),
    [({}, 3), ({"images": 100, "usd": 100.0}, 3), ({"in_flight": 100, "bytes": 10**9}, 4)],
)
async def test_order_of_a_user_needs_no_other_thread(tmp_path: Path, quota: dict[str, Any], statements: int) -> None:
    async with open_counted(tmp_path) as broker:
        holder = await add_key_holder(broker.services, **quota)
        broker.headers.update(holder.headers)
        costs = await broker.costs_of_order()
    # its API key with its user; whether it has provider keys; its limits
    assert costs == {"reads": 3, "commits": 1, "statements": statements}


async def test_idempotency_key_costs_one_read_and_one_statement_more(tmp_path: Path) -> None:
    async with open_counted(tmp_path, api_keys=KEY) as broker:
        broker.headers["authorization"] = f"Bearer {KEY}"
        await broker.order()
        broker.headers["idempotency-key"] = "a"
        broker.database.counts.clear()
        await broker.order()
        assert dict(broker.database.counts) == {"reads": 1, "commits": 1, "statements": 3}


async def test_daily_budget_costs_one_statement_more(tmp_path: Path) -> None:
    async with open_counted(tmp_path, api_keys=KEY, daily_budget=1000.0) as broker:
        broker.headers["authorization"] = f"Bearer {KEY}"
        costs = await broker.costs_of_order()
    assert costs == {"commits": 1, "statements": 3}


async def test_orders_that_differ_in_the_prompt_are_planned_once(tmp_path: Path) -> None:
    async with open_counted(tmp_path) as broker:
        await broker.order()
        routing = OrderRouter.find_routes.__code__
        with CallCounter(routing) as calls:
            for number in range(5):
                await broker.order(prompt=f"fox number {number}")
        assert calls[routing] <= 1  # once more if half a second has passed, and the limits were read again


async def test_providers_are_asked_once_for_each_shape(tmp_path: Path) -> None:
    async with open_counted(tmp_path) as broker:
        asking = Catalog.find_obstacle.__code__
        with CallCounter(asking) as calls:
            for number in range(5):
                await broker.order(seed=number)
            await broker.order(seed=1, aspectRatio="1:1")
        assert calls[asking] == 2


async def test_orders_behind_one_that_waits_look_for_it_once_between_two_polls(tmp_path: Path) -> None:
    async with open_counted(tmp_path) as broker:
        await broker.order()
        broker.services.next_steps.start = lambda *_: pytest.fail("an order has overtaken the one that waits")
        looking = TaskQueue.has_waiting.__code__
        with CallCounter(looking) as calls:
            for number in range(5):
                await broker.order(prompt=f"fox number {number}")
            assert calls[looking] == 1
            broker.services.submissions.lanes.take_turn()
            await broker.order(prompt="the last fox")
            assert calls[looking] == 2


async def test_known_order_is_planned_and_stored_with_few_calls(tmp_path: Path) -> None:
    """Functions of ours and generated ones; the log line has its own."""
    async with open_counted(tmp_path) as broker:
        orders, counts = broker.services.orders, list[list[str]]()
        for number in range(REPEATS):
            request = OrderRequest(params=ImageParams(prompt=f"fox number {number}"))
            with ListedCalls("/broker/", "/storage/", "<string>") as calls:
                await orders.create("house:direct", request, await orders.plan("house:direct", request))
            counts.append(calls)
    assert_few_calls(counts, 77)


async def test_few_layers_are_around_the_handler_of_an_order(tmp_path: Path) -> None:
    """Each is called for the request, and for each message of its response."""
    layers = list[str]()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is TaskRoutes.create_image.__code__ and not layers:
            outer = frame.f_back
            while outer is not None and "httpx" not in outer.f_code.co_filename:
                layers.append(outer.f_code.co_name)
                outer = outer.f_back

    async with open_counted(tmp_path) as broker:
        sys.setprofile(look)
        try:
            await broker.order()
        finally:
            sys.setprofile(None)
    assert len(layers) <= 4, layers


async def test_http_takes_few_calls_around_an_order(tmp_path: Path) -> None:
    """Functions of ours and of the libraries, from the bytes of the request to those of the response."""
    request, counts = http_request("POST", "/api/generate/image", ORDER), list[list[str]]()
    async with open_counted(tmp_path) as broker:
        transport = MemoryTransport()
        protocol = connect("httptools", build_app(broker.services), transport)
        for number in range(REPEATS):
            with ListedCalls("/server/", "/api/", "/starlette/", "/uvicorn/", "/pydantic/") as calls:
                protocol.data_received(request)
                async with asyncio.timeout(4):
                    while transport.writes == number:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
            counts.append(calls)
        protocol.connection_lost(None)
    assert transport.written.count(b"HTTP/1.1 202 ") == REPEATS
    assert_few_calls(counts, 114)


async def test_orders_of_one_caller_wait_for_the_same_commit(tmp_path: Path) -> None:
    async with open_counted(tmp_path) as broker:
        await broker.order()
        broker.database.counts.clear()
        with closing(sqlite3.connect(broker.database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # the disk of the broker is busy
            ordering = [asyncio.create_task(broker.order(prompt=f"fox {number}")) for number in range(AT_ONCE)]
            try:
                async with asyncio.timeout(4):
                    await broker.database.all_at_once.wait()
            finally:
                other.execute("ROLLBACK")
        await asyncio.gather(*ordering)
        assert broker.database.counts["commits"] == AT_ONCE


async def test_callback_costs_one_read_and_one_commit_of_one_statement(tmp_path: Path) -> None:
    async with open_counted(tmp_path) as broker:
        services = broker.services
        task_id = (await broker.order()).json()["taskId"]
        task = await services.tables.tasks.get(task_id)
        assert task is not None
        change = services.tables.tasks.update_task(task, state=TaskState.WAITING.value, attempt=1, job_id="job-1")
        await services.database.transact(change)
        url = services.callback_url(task.provider, task_id, 1)
        assert url is not None
        body = {"code": 200, "data": {"taskId": "job-1", "state": "success", "resultJson": json.dumps({"urls": []})}}
        broker.database.counts.clear()
        response = await broker.client.post(url, json=body, headers={"x-forwarded-for": "192.0.2.1"})
        assert response.status_code == 200
        assert dict(broker.database.counts) == {"reads": 1, "commits": 1, "statements": 1}


async def test_result_of_a_task_that_was_just_submitted_is_stored_with_few_calls_and_no_read(tmp_path: Path) -> None:
    """Functions of ours and generated ones; the log line has its own."""
    async with open_counted(tmp_path) as broker:
        services, begun, counts = broker.services, list[Task](), list[list[str]]()
        for number in range(REPEATS):
            task = await a_waiting_task(broker, f"job-{number}")
            services.next_steps.start = lambda one, _: begun.append(one)
            incoming = an_image_for(services, task)
            broker.database.counts.clear()
            with ListedCalls("/broker/", "/storage/", "/webhooks/", "<string>") as calls:
                decision = await services.receiver.receive(incoming)
            counts.append(calls)
            assert decision.status == 200
            assert dict(broker.database.counts) == {"commits": 1, "statements": 3}
            assert begun[-1].state == TaskState.FETCHING
    assert_few_calls(counts, 207)


async def a_waiting_task(broker: Counted, job: str) -> Task:
    """Return a task that this process has submitted just now."""
    services, now = broker.services, broker.services.clock.now()
    services.next_steps.start = None  # the intent and the attempt are written below
    task = await services.tables.tasks.get((await broker.order()).json()["taskId"])
    assert task is not None
    attempt = Attempt(
        task_id=task.id, number=1, provider="kie", key_id="k", job_id=job, sent_at=now, outcome="accepted", price=4.0
    )
    waits: dict[str, Any] = {"state": TaskState.WAITING, "attempt": 1, "job_id": job, "expects_callback": True}
    change = services.tables.tasks.update_task(task, **waits)
    await services.database.transact(change, insert_row("attempts", attempt))
    waiting = changed_row(task, {**waits, "version": task.version + 1})
    services.transitions.recent_submissions.record(waiting, attempt, {})
    return waiting


def an_image_for(services: Services, task: Task) -> IncomingCallback:
    """Return the callback with the result of a task."""
    links = json.dumps({"resultUrls": ["https://example.com/a.png"]})
    data = {"taskId": task.job_id, "state": "success", "resultJson": links, "creditsConsumed": 4}
    body = json.dumps({"code": 200, "data": data}).encode()
    return IncomingCallback(
        provider="nano-banana",
        query={"task": task.id, "attempt": "1", "token": services.tokens.token(task.id, 1)},
        headers={"host": "broker.example", "content-type": "application/json", "content-length": str(len(body))},
        body=body,
        trusted=False,
    )


class ListedCalls:
    """Lists the calls of functions in folders while the block runs, but not those of log lines.

    folders: parts of the paths of files; `<string>` is that of generated functions.
    """

    def __init__(self, *folders: str) -> None:
        self._folders = folders
        self._calls = list[str]()

    def __enter__(self) -> list[str]:
        sys.setprofile(self._list)
        return self._calls

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _list(self, frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and not file.endswith("logs.py") and any(folder in file for folder in self._folders):
            self._calls.append(frame.f_code.co_qualname)


def assert_few_calls(repeated: Sequence[list[str]], limit: int) -> None:
    """Look at the repetition with the fewest calls.

    The first one fills caches, and a timer, a cache that expires or a new pool of random digits adds some to another.
    """
    calls = min(repeated, key=len)
    assert len(calls) <= limit, "\n".join(map(str, Counter(calls).most_common()))


class CallCounter:
    """Counts the calls of functions while the block runs, without replacing them."""

    def __init__(self, *codes: CodeType) -> None:
        self._calls = Counter(dict.fromkeys(codes, 0))

    def __enter__(self) -> Counter[CodeType]:
        sys.setprofile(self._count)
        return self._calls

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in self._calls:
            self._calls[frame.f_code] += 1
