"""Rows that a process keeps in memory instead of reading them count only as long as they are those of the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.orders import ImageParams, OrderRequest
from broker.reports import Failed, Finished, Pending
from broker.services import Services
from broker.tasks.submissions import account_limits
from storage.attempts import Attempt
from storage.states import TaskState
from storage.tasks import Task
from tests.support.brokers import create_tasks, still
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

ACCEPTED = Pending(job_id="job")
DONE = Finished(outputs=("https://example.com/a.png",), job_id="job", cost=4.0)


async def a_submission(services: Services, clock: ManualClock) -> tuple[Task, Attempt]:
    """Return a task that waits for the answer to its submission, and its attempt."""
    (task,) = await create_tasks(services, OrderRequest(params=ImageParams(prompt="a fox")))
    provider = services.providers["kie"]
    attempt = Attempt(task_id=task.id, number=1, provider="kie", key_id=provider.key_id, sent_at=clock.now(), price=4.0)
    columns = {"state": TaskState.SUBMITTING, "attempt": 1, "key_id": provider.key_id, "expects_callback": True}
    await services.database.transact(
        services.tables.tasks.update_task(task, **columns),
        *services.tables.provider_limits.reserve_submission(attempt, account_limits(provider)),
    )
    return await the_task(services, task.id), attempt


async def the_task(services: Services, task_id: str) -> Task:
    task = await services.tables.tasks.get(task_id)
    assert task is not None
    return task


async def costs(services: Services, task: Task) -> tuple[str, str, float | None]:
    attempt = await services.tables.attempts.get(task.id, 1)
    assert attempt is not None
    return attempt.outcome, attempt.billed, attempt.cost


@pytest.mark.parametrize("answer", [ACCEPTED, Failed(code="x", message="", retryable=True, billed="no", job_id="job")])
async def test_answer_to_a_submission_is_applied_to_the_attempt_that_its_callback_has_changed(
    tmp_path: Path, clock: ManualClock, answer: Pending | Failed
) -> None:
    async with still(tmp_path, clock) as services:
        transitions = services.worker.steps.transitions
        task, attempt = await a_submission(services, clock)
        await transitions.apply_report(task, DONE, 1, is_leased=False)
        await transitions.apply_report(task, answer, 1, attempt=attempt, is_paid=True)
        assert await costs(services, task) == ("succeeded", "yes", 4.0)


async def test_attempt_in_memory_does_not_count_after_another_process_changed_it(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with still(tmp_path, clock) as one, still(tmp_path, clock) as other:
        task, attempt = await a_submission(one, clock)
        await one.worker.steps.transitions.apply_report(task, ACCEPTED, 1, attempt=attempt, is_paid=True)
        waiting = await the_task(one, task.id)
        assert one.worker.steps.transitions.recent_submissions.get_attempt(waiting, 1) is not None
        await other.worker.steps.transitions.apply_report(waiting, DONE, 1, is_leased=False)
        failed = Failed(code="x", message="", retryable=False, billed="no", job_id="job")
        await one.worker.steps.transitions.apply_report(await the_task(one, task.id), failed, 1, is_leased=False)
        await one.worker.steps.transitions.apply_report(waiting, failed, 1, is_leased=False)
        assert await costs(one, task) == ("succeeded", "yes", 4.0)


async def test_task_in_memory_does_not_count_after_another_process_changed_it(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with still(tmp_path, clock) as one, still(tmp_path, clock) as other:
        task, attempt = await a_submission(one, clock)
        transitions = one.worker.steps.transitions
        await transitions.apply_report(task, ACCEPTED, 1, attempt=attempt, is_paid=True)
        known = transitions.recent_submissions.get_task(task.id)
        assert known is not None and known == await the_task(one, task.id)
        assert await transitions.read_task(task.id) is known
        await other.worker.steps.transitions.apply_report(known, DONE, 1, is_leased=False)
        failed = Failed(code="x", message="", retryable=False, billed="no", job_id="job")
        decided_on = await transitions.apply_report(known, failed, 1, is_leased=False)
        assert decided_on is not None and decided_on.state == TaskState.FETCHING
        assert (await the_task(one, task.id)).state == TaskState.FETCHING
        assert await costs(one, task) == ("succeeded", "yes", 4.0)


async def test_task_in_memory_that_another_process_deleted_is_not_changed(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as one, still(tmp_path, clock) as other:
        task, attempt = await a_submission(one, clock)
        transitions = one.worker.steps.transitions
        await transitions.apply_report(task, ACCEPTED, 1, attempt=attempt, is_paid=True)
        known = await transitions.read_task(task.id)
        assert known is not None
        await other.database.execute("DELETE FROM tasks WHERE id = :id", id=task.id)
        assert await transitions.apply_report(known, DONE, 1, is_leased=False) is None
