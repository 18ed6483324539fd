"""Daily budgets in the database: reservations of two processes never exceed the limit, and are settled once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage.attempts import Attempt
from storage.errors import Stale
from storage.ledger import SECONDS_PER_DAY
from storage.limits.budgets import Budgets, day_of, to_micros
from storage.limits.settlement import settle_task
from storage.sql.migrate import upgrade_schema
from storage.sql.postgres import PostgresDatabase
from storage.sql.sqlite import SqliteDatabase
from storage.states import TaskState
from storage.tasks import Task, Tasks
from tests.integration.storage.test_ledger import NOON, TODAY, add_attempts
from tests.integration.storage.test_tasks import a_task

pytestmark = pytest.mark.anyio

DOLLAR = to_micros(1.0)


@pytest.fixture(params=["sqlite", "postgres"])
async def processes(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[Any]]:
    """Two connections to one database, as of two processes."""
    async with AsyncExitStack() as stack:
        if request.param == "sqlite":
            both: list[Any] = [SqliteDatabase(tmp_path / "broker.db") for _ in range(2)]
        else:
            url = await request.getfixturevalue("postgres").fresh()
            both = [PostgresDatabase(url) for _ in range(2)]
        opened = [await stack.enter_async_context(database) for database in both]
        await upgrade_schema(opened[0], NOON)
        yield opened


async def reserve(database: Any, amount: int, *, day: int = TODAY, limit: int = DOLLAR) -> bool:
    try:
        await database.transact(Budgets(database).reserve(day, amount, limit=limit))
    except Stale:
        return False
    return True


@pytest.mark.parametrize(("usd", "micros"), [(0.1 + 0.2, 300_000), (0.0000001, 1), (0.06, 60_000), (1.0, 1_000_000)])
def test_amounts_are_rounded_up_and_not_by_the_error_of_a_float(usd: float, micros: int) -> None:
    assert to_micros(usd) == micros


async def test_reservations_of_two_processes_fill_the_budget_to_the_last_cent(processes: list[Any]) -> None:
    tries = [reserve(processes[number % 2], DOLLAR // 10) for number in range(16)]
    assert sum(await asyncio.gather(*tries)) == 10
    assert await Budgets(processes[0]).get_used(TODAY) == DOLLAR


async def test_first_reservation_of_a_day_obeys_the_limit_too(processes: list[Any]) -> None:
    database = processes[0]
    assert not await reserve(database, DOLLAR + 1)
    assert await Budgets(database).get_used(TODAY) == 0
    assert await reserve(database, DOLLAR)
    assert not await reserve(database, 1)
    assert await reserve(database, 0, limit=1), "what costs nothing fits in a day that cost more than its limit"
    assert await reserve(database, 1, day=TODAY + 1), "the next day has its own budget"


async def settle(database: Any, task: Task, *attempts: Attempt) -> int:
    """Add a reserved task with these attempts, settle it twice, and return what is used of its day then."""
    rows, budgets, day = Tasks(database), Budgets(database), day_of(task.created_at)
    await database.transact(budgets.reserve(day, task.reserved or 0, limit=DOLLAR), rows.insert_task(task))
    await add_attempts(database, *(replace(attempt, task_id=task.id) for attempt in attempts))
    for _ in range(2):
        await database.transact(*settle_task(task))
    fresh = await rows.get(task.id)
    assert fresh is not None
    assert fresh.reserved == await budgets.get_used(day)
    return fresh.reserved


def an_attempt(number: int = 1, **changes: Any) -> Attempt:
    values: dict[str, Any] = {"provider": "kie", "key_id": "key", "sent_at": NOON, "price": 4.0, "usd_per_unit": 0.005}
    return Attempt(task_id="", number=number, **{**values, **changes})


SETTLEMENTS: dict[str, tuple[list[Attempt], float]] = {
    "no attempt": ([], 0.0),
    "free": ([an_attempt(billed="no")], 0.0),
    "cost reported": ([an_attempt(billed="yes", cost=3.0)], 0.015),
    "cost not reported": ([an_attempt(billed="yes")], 0.02),
    "billing unknown": ([an_attempt(billed="unknown")], 0.02),
    "two jobs": ([an_attempt(billed="yes", cost=3.0, duplicate_cost=4.0)], 0.035),
    "several attempts": ([an_attempt(1, billed="no"), an_attempt(2), an_attempt(3, billed="yes", cost=4.0)], 0.04),
    "no price in USD": ([an_attempt(billed="yes", usd_per_unit=None)], 0.0),
}


async def test_settled_reservation_is_what_the_attempts_cost(processes: list[Any]) -> None:
    for number, (attempts, _) in enumerate(SETTLEMENTS.values()):
        task = a_task(number, state=TaskState.FAILED, reserved=60_000, created_at=NOON + number * SECONDS_PER_DAY)
        await settle(processes[0], task, *attempts)
    used = [await Budgets(processes[0]).get_used(TODAY + number) for number in range(len(SETTLEMENTS))]
    expected = {name: to_micros(usd) for name, (_, usd) in SETTLEMENTS.items()}
    assert dict(zip(SETTLEMENTS, used, strict=True)) == expected


async def test_settlement_belongs_to_the_day_of_the_order(processes: list[Any]) -> None:
    database = processes[0]
    task = a_task(state=TaskState.FAILED, reserved=60_000, created_at=NOON)
    await database.transact(Budgets(database).reserve(TODAY, 60_000, limit=DOLLAR), Tasks(database).insert_task(task))
    await reserve(database, 500, day=TODAY + 1)
    await database.transact(*settle_task(replace(task, updated_at=NOON + 86_400)))
    assert (await Budgets(database).get_used(TODAY), await Budgets(database).get_used(TODAY + 1)) == (0, 500)


async def test_days_are_deleted_with_the_ledger(processes: list[Any]) -> None:
    database = processes[0]
    for day in (TODAY - 401, TODAY - 400, TODAY):
        await reserve(database, 1, day=day)
    assert await Budgets(database).delete_older(NOON) == 1
    assert day_of(NOON) == TODAY
