"""The ledger: the purge moves attempts into it, once, and it is kept for 400 days."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from storage.attempts import Attempt
from storage.ledger import KEPT_DAYS, SECONDS_PER_DAY, Group, Ledger
from storage.sql.migrate import upgrade_schema
from storage.sql.sqlite import SqliteDatabase
from storage.states import TaskState
from storage.task_retention import TaskRetention
from storage.tasks import Lease, Task, Tasks
from tests.contracts.databases import DATABASES
from tests.integration.storage.test_tasks import a_task

pytestmark = pytest.mark.anyio

TODAY = 20_000
DAYS = range(TODAY, TODAY + 1)
COLUMNS = ("day", "owner", "provider", "key_id", "model", "billed", "attempts", "cost")
NOON = TODAY * SECONDS_PER_DAY + SECONDS_PER_DAY / 2


@pytest.fixture(params=DATABASES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with await DATABASES[request.param](request, tmp_path) as opened:
        await upgrade_schema(opened, NOON)
        yield opened


async def add_attempts(database: Any, *attempts: Attempt) -> None:
    for attempt in attempts:
        row = vars(attempt)
        await database.execute(
            f"INSERT INTO attempts ({', '.join(row)}) VALUES ({', '.join(':' + name for name in row)})", **row
        )


def an_attempt(task: Task, number: int = 1, **changes: Any) -> Attempt:
    values: dict[str, Any] = {"provider": "kie", "key_id": "default", "sent_at": NOON, "billed": "yes", "cost": 4.0}
    values |= {"price": 4.0, "usd_per_unit": 0.005}
    return Attempt(task_id=task.id, number=number, **{**values, **changes})


async def claim_expired(database: Any, *tasks: Task, holder: str = "me", limit: int = 10) -> list[Task]:
    rows = Tasks(database)
    await database.transact(*(rows.insert_task(task) for task in tasks))
    return await rows.claim(TaskState.EXPIRED, now=NOON, lease=Lease(holder=holder, until=NOON + 30), limit=limit)


def expired(number: int, **changes: Any) -> Task:
    return a_task(number, **{"state": TaskState.EXPIRED, "due_at": NOON - 1, "caller": "ann", **changes})


async def ledger_of(database: Any) -> list[tuple[Any, ...]]:
    rows = await database.fetch("SELECT * FROM ledger ORDER BY day, owner, provider, key_id, model, billed")
    return [tuple(row[name] for name in COLUMNS) for row in rows]


async def sums_of(database: Any) -> list[tuple[Any, ...]]:
    rows = await database.fetch("SELECT * FROM ledger ORDER BY day, owner, provider, key_id, model, billed")
    return [(row["billed"], row["duplicates"], round(row["usd_estimated"], 9), round(row["usd"], 9)) for row in rows]


async def test_purge_moves_attempts_into_the_ledger_summed_by_day_owner_key_model_and_billing(database: Any) -> None:
    first, second, other = expired(1), expired(2), expired(3, caller="bob", model="nano-banana-pro")
    claimed = await claim_expired(database, first, second, other)
    await add_attempts(
        database,
        an_attempt(first, 1, billed="no", cost=None),
        an_attempt(first, 2),
        an_attempt(second, 1, cost=2.5),
        an_attempt(second, 2, billed="unknown", cost=None),
        an_attempt(other, 1, sent_at=NOON - SECONDS_PER_DAY),
        an_attempt(other, 2, key_id="second"),
    )
    await database.transact(*TaskRetention(database).delete_all(claimed))
    assert await ledger_of(database) == [
        (TODAY - 1, "bob", "kie", "default", "nano-banana-pro", "yes", 1, 4.0),
        (TODAY, "ann", "kie", "default", "nano-banana", "no", 1, 0.0),
        (TODAY, "ann", "kie", "default", "nano-banana", "unknown", 1, 0.0),
        (TODAY, "ann", "kie", "default", "nano-banana", "yes", 2, 6.5),
        (TODAY, "bob", "kie", "second", "nano-banana-pro", "yes", 1, 4.0),
    ]
    assert await database.fetch("SELECT * FROM attempts") == await database.fetch("SELECT * FROM tasks") == []


async def test_ledger_keeps_estimates_actual_amounts_and_duplicates(database: Any) -> None:
    """Unknown prices are counted apart; the estimate of an attempt with unknown billing is no certain amount."""
    task = expired(1)
    claimed = await claim_expired(database, task)
    await add_attempts(
        database,
        an_attempt(task, 1, billed="no", cost=None),
        an_attempt(task, 2, cost=5.0, duplicate_result="{}", duplicate_cost=4.0),
        an_attempt(task, 3, price=None),
        an_attempt(task, 4, billed="unknown", cost=None),
        an_attempt(task, 5, usd_per_unit=None),
        an_attempt(task, 6, billed="unknown", price=None, cost=None),
        an_attempt(task, 7, billed="no", price=None, cost=None),
        an_attempt(task, 8, price=None, cost=None),
    )
    before = [(one.billed, one.unpriced) for one in await Ledger(database).sum_costs("provider", DAYS)]
    await database.transact(*TaskRetention(database).delete_all(claimed))
    assert await sums_of(database) == [("no", 0, 0.02, 0.0), ("unknown", 0, 0.02, 0.0), ("yes", 1, 0.02, 0.065)]
    after = [(one.billed, one.unpriced) for one in await Ledger(database).sum_costs("provider", DAYS)]
    assert before == after == [("no", 0), ("unknown", 1), ("yes", 2)]


async def test_later_purges_add_to_the_sums(database: Any) -> None:
    for number in (1, 2):
        claimed = await claim_expired(database, expired(number))
        await add_attempts(database, an_attempt(expired(number)))
        await database.transact(*TaskRetention(database).delete_all(claimed))
    assert await ledger_of(database) == [(TODAY, "ann", "kie", "default", "nano-banana", "yes", 2, 8.0)]


async def test_repeated_purge_counts_once(database: Any) -> None:
    claimed = await claim_expired(database, expired(1))
    await add_attempts(database, an_attempt(expired(1)))
    for _ in range(2):
        await database.transact(*TaskRetention(database).delete_all(claimed))
    assert await ledger_of(database) == [(TODAY, "ann", "kie", "default", "nano-banana", "yes", 1, 4.0)]


async def test_task_with_a_newer_lease_is_neither_purged_nor_counted(database: Any) -> None:
    claimed = await claim_expired(database, expired(1))
    await add_attempts(database, an_attempt(expired(1)))
    await database.execute("UPDATE tasks SET leased_by = 'another worker'")
    await database.transact(*TaskRetention(database).delete_all(claimed))
    assert await ledger_of(database) == []
    assert len(await database.fetch("SELECT * FROM attempts")) == 1


async def test_rows_are_deleted_after_400_days(database: Any) -> None:
    for number, days in enumerate((KEPT_DAYS + 2, KEPT_DAYS + 1, KEPT_DAYS, 0)):
        claimed = await claim_expired(database, expired(number))
        await add_attempts(database, an_attempt(expired(number), sent_at=NOON - days * SECONDS_PER_DAY))
        await database.transact(*TaskRetention(database).delete_all(claimed))
    assert await Ledger(database).delete_older(NOON, 1) == 1
    assert await Ledger(database).delete_older(NOON, 10) == 1
    assert [row[0] for row in await ledger_of(database)] == [TODAY - KEPT_DAYS, TODAY]


async def test_last_moment_of_a_day_belongs_to_it(database: Any) -> None:
    claimed = await claim_expired(database, expired(1))
    await add_attempts(database, an_attempt(expired(1), sent_at=(TODAY + 1) * SECONDS_PER_DAY - 0.3))
    await database.transact(*TaskRetention(database).delete_all(claimed))
    assert [row[0] for row in await ledger_of(database)] == [TODAY]


# -- costs


async def costs_of(database: Any, by: Group, since: int = TODAY) -> list[tuple[Any, ...]]:
    sums = await Ledger(database).sum_costs(by, range(since, TODAY + 1))
    return [(one.name, one.billed, one.attempts, one.duplicates, one.cost, round(one.usd, 9)) for one in sums]


async def test_costs_are_the_same_before_and_after_a_purge(database: Any) -> None:
    first, second = expired(1), expired(2, caller="bob", model="nano-banana-pro")
    claimed = await claim_expired(database, first, second)
    await add_attempts(
        database,
        an_attempt(first, 1, billed="no", cost=None),
        an_attempt(first, 2),
        an_attempt(second, 1, cost=6.0, provider="fal", duplicate_result="{}", duplicate_cost=6.0),
        an_attempt(second, 2, sent_at=NOON - SECONDS_PER_DAY),
    )
    expected = {
        "day": [(TODAY, "yes", 1, 1, 12.0, 0.06), (TODAY, "no", 1, 0, 0.0, 0.0), (TODAY, "yes", 1, 0, 4.0, 0.02)],
        "model": [
            ("nano-banana", "no", 1, 0, 0.0, 0.0),
            ("nano-banana", "yes", 1, 0, 4.0, 0.02),
            ("nano-banana-pro", "yes", 1, 1, 12.0, 0.06),
        ],
        "provider": [("fal", "yes", 1, 1, 12.0, 0.06), ("kie", "no", 1, 0, 0.0, 0.0), ("kie", "yes", 1, 0, 4.0, 0.02)],
        "user": [
            ("ann", "no", 1, 0, 0.0, 0.0),
            ("ann", "yes", 1, 0, 4.0, 0.02),
            ("bob", "yes", 1, 1, 12.0, 0.06),
        ],
    }
    groups: tuple[Group, ...] = get_args(Group)
    assert {by: await costs_of(database, by) for by in groups} == expected
    await database.transact(*TaskRetention(database).delete_all(claimed[:1]))
    assert {by: await costs_of(database, by) for by in groups} == expected
    await database.transact(*TaskRetention(database).delete_all(claimed[1:]))
    assert {by: await costs_of(database, by) for by in groups} == expected
    assert sum(one[2] for one in await costs_of(database, "day", TODAY - 1)) == 4


async def test_each_attempt_is_counted_once_while_a_purge_runs(database: Any) -> None:
    tasks = [expired(number) for number in range(1, 21)]
    claimed = await claim_expired(database, *tasks, limit=len(tasks))
    await add_attempts(database, *(an_attempt(task) for task in tasks))

    async def purge() -> None:
        for task in claimed:
            await database.transact(*TaskRetention(database).delete_all([task]))

    purging = asyncio.create_task(purge())
    counted = []
    while not purging.done():
        counted += await costs_of(database, "day")
    await purging
    assert {(one[2], one[4]) for one in [*counted, *await costs_of(database, "day")]} == {(20, 80.0)}


async def test_costs_read_the_ledger_and_the_tasks_by_their_keys(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "broker.db") as database:
        await upgrade_schema(database, NOON)
        seen: list[str] = []

        @dataclass
        class Explaining:
            async def fetch_report(self, sql: str, **params: Any) -> Any:
                plan = await database.fetch(f"EXPLAIN QUERY PLAN {sql}", **params)
                seen.extend(row["detail"] for row in plan)
                return await database.fetch(sql, **params)

        explained: Any = Explaining()
        await Ledger(explained).sum_costs("model", DAYS)
        assert [step for step in seen if step.startswith("SCAN")] == ["SCAN entries"]
        assert any(step.startswith("SEARCH a USING INDEX attempts_sent") for step in seen), seen
        assert any(step.startswith("SEARCH ledger USING") and "day>" in step for step in seen), seen
