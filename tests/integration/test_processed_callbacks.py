"""Callbacks that are stored together with what they change: nothing is lost where that fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from broker.reports import Finished, Report
from broker.tasks.running import RunningStep
from broker.tasks.steps.callbacks import SUBMISSION_PATIENCE_SECONDS
from storage.callbacks import StoredCallback
from storage.ids import new_callback_id
from storage.states import TaskState
from storage.tasks import Task
from tests.support.brokers import RunningBroker, open_broker
from tests.support.process import until

pytestmark = pytest.mark.anyio

DONE = Finished(outputs=("http://127.0.0.1:9/x.png",), job_id="job", cost=1.0)


async def a_waiting_task(broker: RunningBroker) -> Task:
    now = broker.services.clock.now()
    task = Task(
        id=f"task_{'1' * 43}",
        batch="batch",
        caller="house:local",
        state=TaskState.WAITING,
        due_at=now + 600,
        provider="kie",
        model="nano-banana",
        mode="text-to-image",
        prompt="a red bicycle",
        attempt=1,
        job_id="job",
        deadline_at=now + 900,
        created_at=now,
        updated_at=now,
        entered_at=now,
    )
    await broker.services.database.transact(broker.services.tables.tasks.insert_task(task))
    return task


def a_callback(task: Task) -> StoredCallback:
    return StoredCallback(
        id=new_callback_id(task.created_at),
        provider="kie",
        task_id=task.id,
        attempt=1,
        verification="accept",
        status=200,
        reason="",
        received_at=task.created_at,
        headers="{}",
        query="{}",
        body="{}",
        evidence="{}",
    )


async def stored(broker: RunningBroker, callback: StoredCallback) -> StoredCallback | None:
    return await broker.services.tables.callbacks.get(callback.id)


async def test_callback_and_its_effect_are_stored_together(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        task, queue = await a_waiting_task(broker), broker.services.worker.callbacks
        await until(lambda: _is_open(broker))
        callback = a_callback(task)
        assert await queue.store_processed(callback, task, DONE)
        row, kept = await broker.services.tables.tasks.get(task.id), await stored(broker, callback)
        assert row is not None and row.outputs == DONE.outputs
        assert kept is not None and kept.processed_at is not None


async def test_callbacks_at_once_are_all_stored_and_take_effect_once(tmp_path: Path) -> None:
    """The row that all of them read has changed for all but one, which decide again on the row as it is then."""
    async with open_broker(tmp_path) as broker:
        task, queue = await a_waiting_task(broker), broker.services.worker.callbacks
        await until(lambda: _is_open(broker))
        callbacks = [a_callback(task) for _ in range(5)]
        assert all(await asyncio.gather(*(queue.store_processed(one, task, DONE) for one in callbacks)))
        kept = [await stored(broker, callback) for callback in callbacks]
        assert all(one is not None and one.processed_at is not None for one in kept)


@pytest.mark.parametrize("trouble", ["task gone", "unexpected error", "task deleted"])
async def test_nothing_is_stored_where_the_effect_cannot_be(tmp_path: Path, trouble: str) -> None:
    """Then the caller stores the callback by itself, and it is processed as if it had been found in the inbox."""
    async with open_broker(tmp_path) as broker:
        task, queue = await a_waiting_task(broker), broker.services.worker.callbacks
        await until(lambda: _is_open(broker))
        report: Report = DONE
        if trouble == "task gone":
            task = replace(task, id=f"task_{'2' * 43}")
        elif trouble == "task deleted":
            task = replace(task, state=TaskState.EXPIRED)
        else:
            report = cast("Any", object())
        callback = a_callback(task)
        assert not await queue.store_processed(callback, task, report)
        assert await stored(broker, callback) is None


async def test_callback_waits_for_the_submission_that_is_being_answered(tmp_path: Path) -> None:
    """Both change the row: the second one would be decided, written and read again."""
    async with open_broker(tmp_path) as broker:
        task, services = await a_waiting_task(broker), broker.services
        await until(lambda: _is_open(broker))
        answered, queue = asyncio.Event(), services.worker.callbacks

        async def submit() -> None:
            await answered.wait()
            await services.database.transact(services.tables.tasks.update_task(task, provider_state="queued"))

        submission = RunningStep(task_ids=(task.id,), state=TaskState.SUBMITTING)
        queue.running.start(submit(), "submitting", submission)
        reading = asyncio.create_task(queue.read_task(task.id))
        await asyncio.sleep(0.02)
        assert not reading.done()
        answered.set()
        row = await reading
        assert row is not None and row.provider_state == "queued"


async def test_callback_does_not_wait_long_for_a_submission(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        task, queue = await a_waiting_task(broker), broker.services.worker.callbacks
        await until(lambda: _is_open(broker))
        answered = asyncio.Event()
        submission = RunningStep(task_ids=(task.id,), state=TaskState.SUBMITTING)
        queue.running.start(answered.wait(), "submitting", submission)
        async with asyncio.timeout(SUBMISSION_PATIENCE_SECONDS + 5):
            assert await queue.read_task(task.id) == task
        assert queue.running.has_step_of(task.id, TaskState.SUBMITTING)
        answered.set()


async def _is_open(broker: RunningBroker) -> bool:
    return broker.services.worker.callbacks.is_open
