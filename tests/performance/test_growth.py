"""What must not grow with the number of stored tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.monitoring.cost_sums import CostSums
from storage.attempts import Attempt
from storage.ledger import SECONDS_PER_DAY, Ledger
from storage.lists.newest_tasks import NewestTasks
from storage.sql.database import Database, Outcome, Statement
from storage.sql.migrate import upgrade_schema
from storage.sql.rows import insert_row
from storage.sql.scope import EVERYTHING, Scope
from storage.sql.sqlite import SqliteDatabase
from storage.states import ACTIVE_STATUSES, STATUS_FILTERS, TaskState
from storage.tables import Tables
from storage.tasks import Tasks
from tests.support.api import a_task
from tests.support.brokers import still
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio


async def test_metrics_count_tasks_of_a_state_up_to_a_number(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        states = [TaskState.SUCCEEDED] * 7 + [TaskState.WAITING] * 6 + [TaskState.FAILED] * 2
        tasks = [a_task(clock.now(), number=number, state=state) for number, state in enumerate(states)]
        await services.database.transact(*map(services.tables.tasks.insert_task, tasks))
        page = (await replace(services.collector, max_counted=5).render_page()).decode()
    for state, count in (("succeeded", 5), ("waiting", 5), ("failed", 2), ("queued", 0)):
        assert f'broker_tasks{{state="{state}"}} {count}.0' in page


class ExplainingDatabase(SqliteDatabase):
    """Keeps the plan of each query."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.plan: list[str] = []
        self.reports = 0

    async def __aenter__(self) -> ExplainingDatabase:
        await super().__aenter__()
        return self

    async def fetch(self, sql: str, **params: Any) -> Any:
        rows = await super().fetch(f"EXPLAIN QUERY PLAN {sql}", **params)
        self.plan += [row["detail"] for row in rows]
        return await super().fetch(sql, **params)

    async def fetch_report(self, sql: str, **params: Any) -> Any:
        self.reports += 1
        return await super().fetch_report(sql, **params)


@pytest.mark.parametrize("scope", [EVERYTHING, Scope(owner="me")])
@pytest.mark.parametrize("status", [None, *STATUS_FILTERS])
async def test_pages_of_each_status_are_read_from_an_index(tmp_path: Path, status: str | None, scope: Scope) -> None:
    async with ExplainingDatabase(tmp_path / "broker.db") as database:
        await upgrade_schema(database, 0.0)
        await NewestTasks(database).list_newest(scope, status=status, limit=5, before=(1.0, "task"))
    searches = [step for step in database.plan if step.startswith("SEARCH tasks")]
    assert searches
    assert not [step for step in database.plan if step.startswith("SCAN tasks")]
    if status in ACTIVE_STATUSES:  # as many as are in flight, sorted
        in_flight = ("tasks_in_flight (caller=?)", "tasks_due (state=?)", "tasks_queue_deadline (state=?)")
        assert all(step.endswith(in_flight) for step in searches), searches
    elif status:
        assert all("state=? AND (created_at,id)<" in step for step in searches), searches
    else:
        assert not [step for step in database.plan if "TEMP B-TREE" in step]


async def test_page_of_a_search_looks_at_a_window(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        prompts = ["a zebra", *["a banana"] * 11]
        tasks = [a_task(clock.now() + n, number=n, prompt=prompt) for n, prompt in enumerate(prompts)]
        await services.database.transact(*map(services.tables.tasks.insert_task, tasks))
        before, seen, pages = None, [], 0
        while True:
            found, searched_to = await services.tables.newest_tasks.search_newest(
                EVERYTHING, status="processing", limit=5, before=before, model=None, words=["zebra"], window=5
            )
            seen += found
            pages += 1
            if searched_to is None:
                break
            before = (searched_to.created_at, searched_to.id)
    assert ([task.prompt for task in seen], pages) == (["a zebra"], 3)


async def test_costs_of_days_that_are_over_are_read_once(tmp_path: Path, clock: ManualClock) -> None:
    async with ExplainingDatabase(tmp_path / "broker.db") as database:
        await upgrade_schema(database, 0.0)
        task, today = a_task(clock.now()), int(clock.now() // SECONDS_PER_DAY)
        sent = [clock.now() - days * SECONDS_PER_DAY for days in range(5)]
        attempts = [
            Attempt(task_id=task.id, number=n, provider="kie", key_id="k", sent_at=at) for n, at in enumerate(sent)
        ]
        await database.transact(Tasks(database).insert_task(task), *(insert_row("attempts", one) for one in attempts))
        sums = CostSums(ledger=Ledger(database), clock=clock)
        first = await sums.read("day", since_day=today - 30)
        reports = database.reports
        assert await sums.read("day", since_day=today - 30) == first
    assert (sum(one.attempts for one in first), reports, database.reports) == (5, 5, 7)


class CountingDatabase:
    """Counts the transactions of a database."""

    def __init__(self, inner: Database) -> None:
        self.inner = inner
        self.transactions = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        self.transactions += 1
        return await self.inner.transact(*statements, wake=wake)


async def test_ended_tasks_are_expired_and_purged_many_at_a_time(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        ended = {"state": TaskState.SUCCEEDED, "ended_at": clock.now(), "due_at": clock.now()}
        tasks = [a_task(clock.now(), number=number, **ended) for number in range(400)]
        await services.database.transact(*map(services.tables.tasks.insert_task, tasks))
        counting: Any = CountingDatabase(services.database)
        worker = services.worker
        worker.retention = replace(worker.retention, tables=Tables(counting))
        counts = []
        for seconds in (services.policy.retention_seconds, services.policy.tombstone_seconds):
            clock.advance(seconds + 1)
            counting.transactions = 0
            for state in (TaskState.SUCCEEDED, TaskState.EXPIRED):
                while due := await worker.retention.take_due(state, worker.leases.create_lease()):
                    await worker.retention.run(due)
            counts.append(counting.transactions)
        assert await services.tables.tasks.count_by_state() == {}
    assert max(counts) <= 0.03 * len(tasks), counts
