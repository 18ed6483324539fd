"""Takeover of a task from a worker that is slow but alive: its late results must do no harm."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.orders import ImageParams, OrderRequest
from broker.reports import Finished, Pending
from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from broker.services import Services
from broker.tasks.running import CONCURRENCY, MAX_SLEEP_SECONDS, RunningStep
from broker.tasks.submissions import account_limits
from storage.attempts import Attempt
from storage.errors import StorageError
from storage.ids import reference_owner
from storage.sql.database import Outcome, Statement
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from storage.states import FINAL_STATES, TaskState
from storage.task_retention import TaskRetention
from storage.tasks import DUE_CHANNEL, Lease, Task
from tests.support.brokers import RunningBroker, create_tasks, one_account, open_broker, still
from tests.support.clock import ManualClock
from tests.support.process import until
from tests.support.servers import postgres as servers

pytestmark = pytest.mark.anyio


async def a_task(services: Services, clock: ManualClock, state: TaskState, attempt: int, **changes: Any) -> Task:
    """Return a task in a state, with its attempt."""
    broker = services
    (task,) = await create_tasks(services, OrderRequest(params=ImageParams(prompt="a red bicycle")))
    values = {"state": state, "attempt": attempt, "due_at": clock.now(), "expects_callback": False, **changes}
    update = broker.tables.tasks.update_task(task, **values)
    limits = account_limits(services.providers[task.provider])
    ledger = Attempt(task_id=task.id, number=attempt, provider=task.provider, key_id="default", sent_at=clock.now())
    await services.database.transact(update, *services.worker.steps.submit.limits.reserve_submission(ledger, limits))
    fresh = await broker.tables.tasks.get(task.id)
    assert fresh is not None
    return fresh


async def leased(services: Services, state: TaskState, holder: str, now: float) -> Task:
    (task,) = await services.tables.tasks.claim(state, now=now, lease=Lease(holder=holder, until=now + 30), limit=1)
    return task


@pytest.mark.parametrize("resubmit", [False, True])
async def test_late_recovery_does_not_change_a_later_attempt(
    tmp_path: Path, clock: ManualClock, resubmit: bool
) -> None:
    async with still(tmp_path, clock, resubmit_unknown=resubmit) as services:
        steps, tasks = services.worker.steps, services.tables.tasks
        await a_task(services, clock, TaskState.SUBMITTING, 1)
        sleeper = await leased(services, TaskState.SUBMITTING, "sleeper", clock.now())
        clock.advance(60)
        other = await leased(services, TaskState.SUBMITTING, "other", clock.now())
        # a callback led to a second attempt, which the other worker is submitting
        await services.database.transact(tasks.update_task(other, attempt=2))
        before = await tasks.get(sleeper.id)
        await steps.run(sleeper)
        assert await tasks.get(sleeper.id) == before


async def test_late_pending_report_does_not_change_a_task_leased_by_another(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        steps, tasks = services.worker.steps, services.tables.tasks
        task = await a_task(services, clock, TaskState.WAITING, 1, job_id="job", deadline_at=clock.now() + 10)
        sleeper = await leased(services, TaskState.WAITING, "sleeper", clock.now())
        clock.advance(60)
        await leased(services, TaskState.WAITING, "other", clock.now())
        before = await tasks.get(task.id)
        provider = _Saying(steps.check.accounts.house["kie"].preferred, Pending(job_id="job"))
        check = replace(steps.check, accounts=one_account(steps.check.accounts, "kie", provider))
        await check.run(sleeper)
        assert await tasks.get(task.id) == before
        provider.report = Finished(outputs=("https://example.com/a.png",), job_id="job")
        await check.run(sleeper)
        after = await tasks.get(task.id)
        assert after is not None
        assert after.state == TaskState.FETCHING, "a result counts without a lease"


async def test_stored_intent_is_submitted_although_another_worker_took_the_lease(
    tmp_path: Path, clock: ManualClock
) -> None:
    """Other workers only wait for the outcome of a stored intent, so the worker that stored it must send the order."""
    async with still(tmp_path, clock) as services:
        submit = services.worker.steps.submit
        (task,) = await create_tasks(services, OrderRequest(params=ImageParams(prompt="a red bicycle")))
        (mine,) = await services.tables.task_queue.claim(
            now=clock.now(), lease=Lease(holder="sleeper", until=clock.now() + 30), provider="kie", limit=1
        )
        provider = _Saying(submit.accounts.house["kie"].preferred, Pending(job_id="job"))

        async def take_over() -> None:
            clock.advance(60)
            await leased(services, TaskState.SUBMITTING, "other", clock.now())

        tasks: Any = _Overtaken(services.tables.tasks, take_over)
        transitions = replace(submit.transitions, tasks=tasks)
        accounts = one_account(submit.accounts, "kie", provider)
        queue = replace(submit.queue, accounts=accounts)
        await replace(submit, accounts=accounts, queue=queue, transitions=transitions).run(mine)
        after = await services.tables.tasks.get(task.id)
        assert after is not None
        assert (after.state, after.job_id, provider.submitted) == (TaskState.WAITING, "job", 1)


class _Overtaken:
    """Tasks, the first of which is taken over by another worker just before it is read again."""

    def __init__(self, tasks: Any, take_over: Callable[[], Awaitable[None]]) -> None:
        self._tasks = tasks
        self._take_over: Callable[[], Awaitable[None]] | None = take_over

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tasks, name)

    async def get(self, task_id: str) -> Any:
        if take_over := self._take_over:
            self._take_over = None
            await take_over()
        return await self._tasks.get(task_id)


class _Saying:
    """A provider with a fixed report."""

    def __init__(self, provider: Any, report: Any) -> None:
        self._provider = provider
        self.report = report
        self.submitted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    async def submit(self, order: Any, callback_url: str | None, sink: Any) -> Any:
        self.submitted += 1
        return self.report

    async def check(self, job_id: str, sink: Any) -> Any:
        return self.report


@pytest.mark.faults
@pytest.mark.parametrize("resubmit", [False, True])
async def test_outage_longer_than_the_lease_loses_no_order(tmp_path: Path, resubmit: bool) -> None:
    """Two workers; the database stops during submissions, and returns when all leases have ended."""
    options = Options(duration=0.1, creates_per_window=10_000)
    with servers.running() as server:
        shared: dict[str, Any] = {
            "database_url": await server.fresh(),
            "blob_url": f"file:{tmp_path / 'blobs'}",
            "secret_key": "the same for all of them",
            "with_callbacks": False,
            "lease": 1.0,
            "task_deadline": 60,
            "request_timeout": 30,
            "resubmit_unknown": resubmit,
        }
        async with (
            serve_sandbox(options=options) as sandbox,
            open_broker(tmp_path / "one", sandbox=sandbox, **shared) as one,
            open_broker(tmp_path / "two", sandbox=sandbox, **shared),
        ):
            ids = [await one.create_task(f"picture {n} [mood:slow_answer:1]") for n in range(20)]
            await until(lambda: _accepted(one, 20))
            await asyncio.to_thread(server.stop, "immediate")
            await asyncio.sleep(8)
            await asyncio.to_thread(server.start)
            ends = [await one.wait_end(task_id, seconds=60) for task_id in ids]
            jobs = await one.provider_jobs()
    assert Counter(data["status"] for data in ends) == {"completed": 20}
    assert len(jobs) == 20


async def _accepted(broker: RunningBroker, count: int) -> bool:
    return len(await broker.provider_jobs()) >= count


# -- interrupted retention


async def test_references_are_deleted_after_an_error_of_the_blob_store(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        retention, images = services.worker.retention, services.tables.images
        task = await a_task(services, clock, TaskState.SUCCEEDED, 1, ended_at=clock.now())
        owner = reference_owner(task.batch)
        async with services.blobs.new_draft(owner) as draft:
            await draft.write(b"bytes")
            blob = await draft.commit()
        row = {**_ROW, "owner": owner, "blob": blob.name, "created_at": clock.now()}
        columns = ", ".join(row)
        await services.database.execute(
            f"INSERT INTO images ({columns}) VALUES ({', '.join(':' + name for name in row)})", **row
        )
        clock.advance(25 * 3600)
        await retention.run([await leased(services, TaskState.SUCCEEDED, "me", clock.now())])
        expired = await leased(services, TaskState.EXPIRED, "me", clock.now())
        stubborn = replace(retention, blobs=_Refusing(services.blobs))
        with pytest.raises(StorageError):
            await stubborn.run([expired])
        assert await images.owners_with_images([owner]) == {owner}
        await retention.run([expired])
        assert await images.owners_with_images([owner]) == set()
        assert sum(path.is_file() for path in (tmp_path / "blobs").rglob(f"{owner}.*")) == 0


_ROW = {
    "caller": "local",
    "name": "reference_1.png",
    "kind": "reference",
    "position": 0,
    "media_type": "image/png",
    "size": 5,
    "width": 1,
    "height": 1,
    "sha256": "0",
}


class _Refusing:
    """A blob store that fails to delete."""

    def __init__(self, blobs: Any) -> None:
        self._blobs = blobs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    async def delete_of_owners(self, owners: Sequence[str]) -> None:
        raise StorageError("503")


async def test_sweep_keeps_the_files_of_an_unfinished_task(tmp_path: Path, clock: ManualClock) -> None:
    """Its bytes are stored before their row."""
    async with still(tmp_path, clock) as services:
        task = await a_task(services, clock, TaskState.FETCHING, 1)
        for owner in (task.id, "task_" + "f" * 43, reference_owner(task.batch)):
            async with services.blobs.new_draft(owner) as draft:
                await draft.write(b"bytes")
                await draft.commit()
        assert await services.worker.retention.find_strays(
            [task.id, "task_" + "f" * 43, reference_owner(task.batch)]
        ) == ["task_" + "f" * 43]


async def test_shorter_retention_does_not_change_a_revived_task(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        tasks = services.tables.tasks
        due = {"ended_at": clock.now(), "due_at": clock.now() + 86_400}
        retention = TaskRetention(tasks.database)
        ended = await a_task(services, clock, TaskState.FAILED, 1, **due)
        revived = await a_task(services, clock, TaskState.FETCHING, 1, **due)
        assert await retention.shorten_retention(60.0, after="", limit=10) == max(ended.id, revived.id)
        one, other = await tasks.get(ended.id), await tasks.get(revived.id)
        assert one is not None
        assert (one.due_at, other) == (clock.now() + 60, revived)
        assert await retention.shorten_retention(60.0, after=max(ended.id, revived.id), limit=10) is None


async def test_worker_without_free_slots_polls_again_soon(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        worker = services.worker
        due_work = await worker.read_due_work()
        overdue = dict.fromkeys((*CONCURRENCY, *FINAL_STATES), 0.0)
        due_work = replace(due_work, due=overdue, queued={"kie": 0.0}, queue_deadline_at=0.0)
        for state in overdue:
            # one more than there are: a claim and a promise may take the last slot at the same time
            for _ in range(worker.running.free_slots(state) + 1):
                worker.running.start(asyncio.get_running_loop().create_future(), "test", RunningStep(state=state))
        assert await worker.seconds_until_due(due_work) == MAX_SLEEP_SECONDS
        await worker.running.cancel_all(held_too=True)


async def test_promised_slots_are_not_claimed_and_wake_a_worker_when_they_are_given_back(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with still(tmp_path, clock) as services:
        promises, running, state = services.next_steps, services.running_steps, TaskState.FETCHING
        promises.start = lambda *_: pytest.fail("no step is to begin")
        ids = [f"task_{number}" for number in range(CONCURRENCY[state])]
        assert promises.promise([*ids, "one more"], state) is None
        assert promises.promise(ids, state) is not None
        assert (running.free_slots(state), promises.promise(["one more"], state)) == (0, None)
        with services.database.listen(DUE_CHANNEL) as due:
            promises.forgo(state)
            assert await due.wait(0)
        assert running.free_slots(state) == 1


class RunningTwice(SqliteDatabase):
    """Runs the transaction that brings a result twice, as Postgres does after a commit whose end was unknown."""

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        outcomes = await super().transact(*statements, wake=wake)
        if any(statement.params.get("state") == TaskState.FETCHING for statement in statements):
            await super().transact(*statements, wake=wake)
        return outcomes


@pytest.mark.parametrize("with_callbacks", [True, False])
async def test_result_whose_commit_had_an_unknown_end_is_downloaded_at_once(
    tmp_path: Path, with_callbacks: bool
) -> None:
    """And not when the lease ends that was written with it: the process that holds it goes on."""
    async with open_broker(
        tmp_path,
        with_callbacks=with_callbacks,
        lease=600,
        open_database=lambda settings: RunningTwice(sqlite_path(settings.database)),
    ) as broker:
        task_id = await broker.create_task("a red bicycle")
        assert (await broker.wait_end(task_id))["status"] == "completed"


def test_processes_that_were_forked_name_their_leases_differently() -> None:
    """By the name a process knows an intent to submit as its own: two with one name would both submit."""
    forking = """
import os
from broker.clock import SystemClock
from broker.tasks.running import new_lease
new_lease(SystemClock(), 1.0)
for _ in range(3):
    if not os.fork():
        print(new_lease(SystemClock(), 1.0).holder, flush=True)
        os._exit(0)
    os.wait()
"""
    ran = subprocess.run([sys.executable, "-c", forking], capture_output=True, text=True, check=True, timeout=30)
    assert len(set(ran.stdout.split())) == 3
