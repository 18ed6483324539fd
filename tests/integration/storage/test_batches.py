"""Batches of different orders: the end is announced once, by the last of tasks that end at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Final, get_args

import pytest

from storage.batches import Batches, Ending, StoredBatch, ending_of
from storage.deliveries import Delivery
from storage.sql.database import Database, Statement
from storage.sql.migrate import upgrade_schema
from storage.states import TaskState
from storage.tasks import Task, Tasks
from tests.contracts.databases import DATABASES

pytestmark = pytest.mark.anyio

NOW: Final = 1_000.0
BATCH: Final = "batch_" + "0" * 43
ENDS: Final = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED)


@pytest.fixture(params=DATABASES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with await DATABASES[request.param](request, tmp_path) as opened:
        await upgrade_schema(opened, NOW)
        yield opened


def a_batch(batch_id: str = BATCH, **changes: object) -> StoredBatch:
    batch = StoredBatch(
        id=batch_id, caller="me", dialect="gemini", name="foxes", model="m", created_at=NOW, updated_at=NOW
    )
    return replace(batch, **changes)  # type: ignore[arg-type]


def a_task(number: int, batch: str = BATCH) -> Task:
    return Task(
        id=f"task_{batch[6:12]}{number:026x}",
        batch=batch,
        caller="me",
        due_at=NOW,
        provider="kie",
        model="nano-banana",
        mode="text-to-image",
        prompt="a fox",
        deadline_at=NOW,
        created_at=NOW,
        updated_at=NOW,
        entered_at=NOW,
    )


async def end_task(database: Database, task: Task, state: TaskState) -> None:
    """End a task, and announce the end of its batch if it is the last one, in one transaction."""
    batches = Batches(database)
    update = Tasks(database).update_task(task, state=state, ended_at=NOW)
    deliveries = [
        batches.insert_if_ended(
            task.batch,
            ending,
            Delivery(
                id=f"evt_{task.batch}_{ending}",
                caller=task.caller,
                task_id=task.id,
                type=f"batch.{ending}",
                url="https://a.example/",
                host="a.example",
                body="{}",
                due_at=NOW,
                created_at=NOW,
            ),
        )
        for ending in get_args(Ending)
    ]
    await database.transact(update, batches.touch(task.batch, NOW), *deliveries)


async def announced(database: Database) -> list[str]:
    return [row["type"] for row in await database.fetch("SELECT type FROM deliveries ORDER BY id")]


async def test_tasks_that_end_at_the_same_time_announce_one_end(database: Database) -> None:
    tasks = [a_task(number) for number in range(12)]
    insert = [Tasks(database).insert_task(task) for task in tasks]
    await database.transact(*insert, Batches(database).insert_batch(a_batch()))
    await asyncio.gather(*(end_task(database, task, TaskState.SUCCEEDED) for task in tasks[:-1]))
    assert await announced(database) == []
    await end_task(database, tasks[-1], TaskState.FAILED)
    assert await announced(database) == ["batch.succeeded"]


async def test_all_at_once_announce_one_end(database: Database) -> None:
    tasks = [a_task(number) for number in range(12)]
    insert = [Tasks(database).insert_task(task) for task in tasks]
    await database.transact(*insert, Batches(database).insert_batch(a_batch()))
    await asyncio.gather(*(end_task(database, task, TaskState.SUCCEEDED) for task in tasks))
    assert await announced(database) == ["batch.succeeded"]


async def test_announced_end_is_the_one_that_is_shown(database: Database) -> None:
    for number, states in enumerate(product(ENDS, repeat=2)):
        batch = f"batch_{number:043x}"
        tasks = [a_task(1, batch), a_task(2, batch)]
        tasks = [replace(task, id=f"task_{number * 2 + at:043x}") for at, task in enumerate(tasks)]
        insert: list[Statement] = [Tasks(database).insert_task(task) for task in tasks]
        await database.transact(*insert, Batches(database).insert_batch(a_batch(batch)))
        assert ending_of([task.status for task in tasks]) is None
        for task, state in zip(tasks, states, strict=True):
            await end_task(database, task, state)
        shown = ending_of([task.status for task in await Tasks(database).list_of_batch(batch)])
        rows = await database.fetch("SELECT type FROM deliveries WHERE id LIKE :id", id=f"evt_{batch}%")
        assert [row["type"] for row in rows] == [f"batch.{shown}"], states


async def test_batches_are_listed_by_caller_and_dialect_and_go_with_their_tasks(database: Database) -> None:
    batches = Batches(database)
    rows = [a_batch(f"batch_{number:043x}", created_at=NOW + number % 2) for number in range(4)]
    others = [a_batch("batch_x", caller="other"), a_batch("batch_y", dialect="other")]
    await database.transact(*(batches.insert_batch(batch) for batch in (*rows, *others)))
    found: list[StoredBatch] = []
    while page := await batches.list_newest(
        "me", "gemini", before=(found[-1].created_at, found[-1].id) if found else None, limit=3
    ):
        found += page
    assert found == sorted(rows, key=lambda batch: (batch.created_at, batch.id), reverse=True)
    assert await batches.get(rows[0].id) == rows[0]
    await database.transact(Tasks(database).insert_task(a_task(1, rows[0].id)))
    assert await batches.delete_before(NOW + 1, 10) == 3, "but not the one with a task, and not the younger ones"
    assert await batches.delete(rows[0])
    assert not await batches.delete(rows[0])
