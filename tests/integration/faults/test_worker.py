"""Faults around the steps: a failing database, a clock that jumps, a wrong database, a bug."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.bootstrap import database_for
from broker.orders import ImageParams, OrderRequest
from broker.services import Services
from broker.settings import Settings
from storage.errors import StorageFull
from storage.sql.database import Outcome, Statement
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import a_task
from tests.support.brokers import RunningBroker, create_tasks, one_account, open_broker, still
from tests.support.clock import ManualClock
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.anyio

HOUR = 3600.0


class Stuttering(SqliteDatabase):
    """A database that fails the first `times` times that a provider's response is stored."""

    times = 3

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        if self.times and any(statement.params.get("state") == TaskState.WAITING for statement in statements):
            self.times -= 1
            raise StorageFull("the disk of the database is full: free some space")
        return await super().transact(*statements, wake=wake)


@pytest.mark.parametrize("with_callbacks", [True, False])
async def test_job_id_survives_a_failing_database(tmp_path: Path, with_callbacks: bool) -> None:
    def open_stuttering(settings: Settings) -> Stuttering:
        return Stuttering(sqlite_path(settings.database))

    async with open_broker(tmp_path, with_callbacks=with_callbacks, open_database=open_stuttering) as broker:
        task_id = await broker.create_task("a red bicycle [mood:lost]")
        assert (await broker.wait_end(task_id))["status"] == "completed"
        assert len(await broker.provider_jobs()) == 1


async def test_task_whose_step_crashes_fails_at_the_deadline(tmp_path: Path) -> None:
    """The adapter crashes on every response; the task must end."""
    async with open_broker(tmp_path, with_callbacks=False, lease=0.2, task_deadline=1.0) as broker:
        worker = broker.services.worker
        check = worker.steps.check
        broken: Any = _Crashing(check.accounts.house["kie"].preferred)
        worker.steps = replace(worker.steps, check=replace(check, accounts=one_account(check.accounts, "kie", broken)))
        data = await broker.wait_end(await broker.create_task("a red bicycle"))
    assert data["errorDetail"]["code"] == "deadline_exceeded"


class _Crashing:
    """A provider whose adapter has a bug."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    async def check(self, job_id: str, sink: Any) -> Any:
        raise ZeroDivisionError("a bug")


# -- with a manual clock, and without a provider


async def ended(services: Services, clock: ManualClock, **changes: Any) -> Task:
    """Return a task that has just succeeded, with a file."""
    (task,) = await create_tasks(services, OrderRequest(params=ImageParams(prompt="a red bicycle")))
    await _file(services, task.id)
    due_at = clock.now() + services.worker.steps.transitions.policy.retention_seconds
    values = {"state": TaskState.SUCCEEDED, "ended_at": clock.now(), "due_at": due_at, **changes}
    await services.database.transact(services.tables.tasks.update_task(task, **values))
    return replace(task, version=task.version + 1, **values)


async def _file(services: Services, owner: str) -> None:
    async with services.blobs.new_draft(owner) as draft:
        await draft.write(b"bytes")
        await draft.commit()


def files(folder: Path) -> int:
    return sum(path.is_file() for path in (folder / "blobs").rglob("*"))


async def turn(services: Services) -> None:
    """Poll until no step is due."""
    worker = services.worker
    await worker.poll_once()
    while worker.running.count:
        await worker.running.wait()
        await worker.poll_once()


async def test_retention_deletes_only_what_is_old_enough(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        task = await ended(services, clock)
        clock.advance(23 * HOUR)
        assert (await services.worker.clean_up(), files(tmp_path)) == (0, 1)
        clock.advance(2 * HOUR)
        assert (await services.worker.clean_up(), files(tmp_path)) == (1, 0)
        row = await services.tables.tasks.get(task.id)
        assert row is not None
        assert (row.state, row.prompt) == (TaskState.EXPIRED, "")
        clock.advance(8 * 24 * HOUR)
        await services.worker.clean_up()
        assert await services.tables.tasks.get(task.id) is None


async def test_shorter_retention_applies_to_ended_tasks(tmp_path: Path, clock: ManualClock) -> None:
    """It is the cure that is named for a full disk."""
    async with still(tmp_path, clock) as services:
        await ended(services, clock)
    clock.advance(2 * HOUR)
    async with still(tmp_path, clock, retention_hours=1) as services:
        assert (await services.worker.clean_up(), files(tmp_path)) == (1, 0)


async def test_cleanup_of_many_tasks_fits_into_a_full_disk(tmp_path: Path, clock: ManualClock) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        url = f"sqlite:///{disk.folder / 'broker.db'}"
        async with still(tmp_path, clock, database_url=url) as services:
            tasks = [a_task(1.0, number=n, state=TaskState.FAILED, due_at=1.0, prompt="x" * 500) for n in range(1000)]
            await services.database.transact(*(services.tables.tasks.insert_task(task) for task in tasks))
        open_database = partial(database_for, spends_reserve=True)
        async with still(tmp_path, clock, database_url=url, open_database=open_database) as services:
            disk.fill()
            assert await services.worker.clean_up() == 1000


class JumpingClock(ManualClock):
    """A clock whose time of day can be set, unlike its monotonic time."""

    def __init__(self) -> None:
        super().__init__()
        self.set_by = 0.0

    def now(self) -> float:
        return super().now() + self.set_by


async def test_clock_jump_deletes_nothing(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with still(tmp_path, clock) as services:
        await ended(services, clock)
        await turn(services)
        clock.set_by = 25 * HOUR
        await turn(services)
        assert files(tmp_path) == 1
        clock.set_by = 0.0
        clock.advance(2 * HOUR)
        await turn(services)
        assert files(tmp_path) == 1
        clock.advance(23 * HOUR)
        await turn(services)
        assert files(tmp_path) == 0, "without a jump it does"


async def test_sweep_deletes_only_files_without_a_row(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, ManualClock(time.time() - 10 * HOUR)) as services:
        await _file(services, "refs_stray")
        _age(tmp_path, HOUR * 2)
        await _file(services, "refs_young")
        assert (await services.worker.retention.sweep(older_than=HOUR), files(tmp_path)) == (1, 1)


async def test_new_database_does_not_sweep_the_files_of_another(tmp_path: Path) -> None:
    """A typo in DATABASE_URL must not cost the images."""
    async with still(tmp_path, ManualClock(time.time() - 10 * HOUR)) as services:
        await _file(services, "refs_a")
    _age(tmp_path, HOUR * 2)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    async with still(tmp_path, ManualClock(time.time()), database_url=other) as services:
        assert (await services.worker.retention.sweep(older_than=HOUR), files(tmp_path)) == (0, 1)


async def test_sweep_of_most_files_is_refused(tmp_path: Path) -> None:
    async with still(tmp_path, ManualClock(time.time() - 10 * HOUR)) as services:
        for number in range(20):
            await _file(services, f"refs_{number}")
        _age(tmp_path, HOUR * 2)
        assert (await services.worker.retention.sweep(older_than=HOUR), files(tmp_path)) == (0, 20)


def _age(folder: Path, seconds: float) -> None:
    for path in (folder / "blobs").glob("*/*/*"):
        os.utime(path, (time.time() - seconds,) * 2)


async def test_step_that_outlives_its_lease_is_not_started_again(tmp_path: Path) -> None:
    """A lease ends during a submission: recovery now would give up a job that the provider is making."""
    async with open_broker(tmp_path, with_callbacks=False) as broker:
        await _jump_while_ordering(broker)


async def _jump_while_ordering(broker: RunningBroker) -> None:
    task_id = await broker.create_task("a red bicycle [mood:slow_answer:1]")
    async with asyncio.timeout(10):
        while True:
            if await broker.provider_jobs():
                break
            await asyncio.sleep(0.02)
    database = broker.services.database
    await database.execute("UPDATE tasks SET lease_until = 1 WHERE id = :id", id=task_id)
    database.notify("due")
    assert (await broker.wait_end(task_id))["status"] == "completed"
