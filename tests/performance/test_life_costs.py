"""Work for one life of a task, from the order to its stored image: transactions, statements, reads, polls."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from broker.logs import log
from broker.net.connection import HttpConnection
from broker.net.http_request import HttpRequest
from broker.net.response_parser import ResponseParser
from broker.orders import ImageParams, OrderRequest
from storage.sql.database import Outcome, Row, Statement
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Task
from tests.support.brokers import RunningBroker, open_broker
from tests.support.process import until

pytestmark = pytest.mark.anyio

CALLER = "house:local"
SETTLING_SECONDS = 0.2
"""After it nothing is left to do that a life began."""


PLAIN = {str, int, float, bytes, type(None)}


class CountingSqlite(SqliteDatabase):
    """Counts what it is asked for."""

    counts: ClassVar[Counter[str]] = Counter()

    async def fetch(self, sql: str, **params: Any) -> list[Row]:
        self.counts["thread hops of reads"] += 1
        return await super().fetch(sql, **params)

    async def fetch_one(self, sql: str, **params: Any) -> Row | None:
        self.counts["looks for due work" if "AS deadline" in sql else "point reads"] += 1
        self.counts["reads of whole rows"] += sql.startswith("SELECT *")
        return await super().fetch_one(sql, **params)

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        self.counts["transactions"] += bool(statements)
        self.counts["statements"] += len(statements)
        self.counts["wake-ups of workers"] += DUE_CHANNEL in wake
        values = [value for one in statements for value in (*one.params.values(), *one.row)]
        self.counts["values of other classes"] += sum(type(value) not in PLAIN for value in values)
        return await super().transact(*statements, wake=wake)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with open_broker(
        tmp_path, open_database=lambda settings: CountingSqlite(sqlite_path(settings.database)), check_after=30.0
    ) as broker:
        await live(broker, tmp_path)  # warms caches
        yield broker


async def live(broker: RunningBroker, folder: Path) -> Task:
    """Order a picture, and return when its life is over; waits without the counted database."""
    orders, request = broker.services.orders, OrderRequest(params=ImageParams(prompt="a red bicycle"))
    created = await orders.create(CALLER, request, await orders.plan(CALLER, request))
    with closing(sqlite3.connect(folder / "broker.db")) as connection:

        async def has_ended() -> bool:
            return not connection.execute("SELECT 1 FROM tasks WHERE state <> 'succeeded'").fetchone()

        await until(has_ended)
    await asyncio.sleep(SETTLING_SECONDS)
    return created.tasks[0]


async def test_one_life_takes_four_transactions_and_hardly_a_read(broker: RunningBroker, tmp_path: Path) -> None:
    """Create with the intent, acceptance, callback with its result, end: each is durable before what follows it."""
    CountingSqlite.counts.clear()
    await live(broker, tmp_path)
    counts = CountingSqlite.counts
    assert counts["transactions"] == 4, counts
    assert counts["thread hops of reads"] <= 2, "for the status of the providers, twice a second at most"
    assert counts["statements"] <= 12, counts
    assert counts["values of other classes"] == 0, "one costs a conversion of all values of its group"
    assert counts["point reads"] <= 2, counts
    assert counts["reads of whole rows"] == 0, "each step has the row that the one before it wrote"
    assert counts["looks for due work"] <= 2, counts
    assert counts["wake-ups of workers"] == 1, "for the place that the job has left at its provider"


async def test_one_life_sends_one_order_and_one_download(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback brings the result: the provider is not asked for a status."""
    sent, send = list[str](), HttpConnection.send

    async def count_sent(connection: HttpConnection, request: HttpRequest) -> ResponseParser:
        sent.append(request.head.split(b" ", 1)[0].decode())
        return await send(connection, request)

    before = len(await broker.provider_jobs())
    monkeypatch.setattr(HttpConnection, "send", count_sent)
    await live(broker, tmp_path)
    assert sent == ["POST", "GET"]
    assert len(await broker.provider_jobs()) == before + 1


async def test_one_life_writes_four_lines(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "sink", lambda event: lines.append(event["action"]))
    caplog.set_level(logging.INFO, "broker")
    await live(broker, tmp_path)
    assert [line for line in lines if line.startswith("task_")] == [
        "task_created",
        "task_waiting",
        "task_fetching",
        "task_succeeded",
    ]


async def test_many_lives_share_claims_and_looks_for_due_work(broker: RunningBroker, tmp_path: Path) -> None:
    CountingSqlite.counts.clear()
    await asyncio.gather(*(live(broker, tmp_path) for _ in range(20)))
    counts = CountingSqlite.counts
    assert counts["transactions"] <= 20 * 5 + 10, counts
    assert counts["looks for due work"] <= 30, counts
    assert counts["thread hops of reads"] <= 10, counts


async def test_rows_with_the_same_short_list_share_it(broker: RunningBroker, tmp_path: Path) -> None:
    """A claim reads whole rows, and a list in JSON takes longer than the rest of one."""
    tasks = [await broker.services.tables.tasks.get((await live(broker, tmp_path)).id) for _ in range(2)]
    first, second = (task.candidates for task in tasks if task)
    assert first
    assert first is second


async def test_idle_worker_looks_for_due_work_once_a_second(broker: RunningBroker) -> None:
    CountingSqlite.counts.clear()
    await asyncio.sleep(0.6)
    counts = CountingSqlite.counts
    assert counts["looks for due work"] <= 1, counts
    assert counts["transactions"] == 0, counts


async def test_waiting_tasks_take_hardly_any_memory(broker: RunningBroker, tmp_path: Path) -> None:
    services, task = broker.services, await live(broker, tmp_path)
    now = services.clock.now()
    waiting = replace(task, state=TaskState.WAITING, due_at=now + 600, deadline_at=now + 900, leased_by="")
    rows = [replace(waiting, id=f"task_{number:043x}", lease_until=0.0) for number in range(1000)]
    statements = [services.tables.tasks.insert_task(row) for row in rows]
    gc.collect()
    before = len(gc.get_objects())
    await services.database.transact(*statements, wake=(DUE_CHANNEL,))
    await asyncio.sleep(SETTLING_SECONDS)
    gc.collect()
    assert len(gc.get_objects()) - before < 2 * len(rows), "the row is the queue"
