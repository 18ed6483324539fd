"""New orders that are submitted at once: never ahead of others, of a limit or of a pause, and never twice."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from broker.errors import ApiError
from broker.orders import DataUriReference, ImageParams, OrderRequest
from broker.reports import Pending
from broker.services import Services
from broker.tasks.accounts.lanes import PAUSE_SECONDS
from broker.tasks.running import CONCURRENCY, new_lease
from broker.tasks.submissions import SubmissionQueue, account_limits
from storage.attempts import Attempt
from storage.errors import StorageError
from storage.ids import new_task_id
from storage.sql.database import Outcome, Statement
from storage.sql.rows import changed_row
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Lease, Task
from tests.support.api import png
from tests.support.brokers import create_tasks, one_account, open_broker, still
from tests.support.clock import ManualClock
from tests.support.process import until

pytestmark = pytest.mark.anyio

FOX = OrderRequest(params=ImageParams(prompt="a fox"))
PICTURE = "data:image/png;base64," + base64.b64encode(png()).decode()


@dataclass(frozen=True, kw_only=True)
class Arriving:
    """A broker whose worker only notes the steps that it is to begin."""

    services: Services
    begun: list[Task]

    @property
    def free(self) -> int:
        return self.services.running_steps.free_slots(TaskState.QUEUED)

    async def order(self, request: OrderRequest = FOX) -> Task:
        """Return the row of a new order."""
        task = await self.services.tables.tasks.get((await create_tasks(self.services, request))[0].id)
        assert task is not None
        return task


@asynccontextmanager
async def arriving(folder: Path, clock: ManualClock, **settings: Any) -> AsyncIterator[Arriving]:
    async with still(folder, clock, **settings) as services:
        begun = list[Task]()
        services.next_steps.start = lambda task, work: begun.append(task)
        yield Arriving(services=services, begun=begun)


async def test_order_that_nothing_waits_before_begins_with_its_own_row_and_lease(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with arriving(tmp_path, clock) as broker:
        task = await broker.order()
        assert [(one.id, one.leased_by) for one in broker.begun] == [(task.id, task.leased_by)]
        assert task.leased_by and task.lease_until > clock.now()
        assert broker.free == CONCURRENCY[TaskState.QUEUED], "its slot is the step's by now"


async def test_intent_is_written_with_the_order(tmp_path: Path, clock: ManualClock) -> None:
    async with arriving(tmp_path, clock) as broker:
        task = await broker.order()
        attempt = await broker.services.tables.attempts.get(task.id, 1)
        assert attempt is not None
        assert (task.state, task.attempt, task.version) == (TaskState.SUBMITTING, 1, 2)
        assert (attempt.outcome, attempt.key_id, attempt.sent_at) == ("sent", task.key_id, task.sent_at)


async def test_order_without_capacity_is_written_as_a_queued_one(tmp_path: Path, clock: ManualClock) -> None:
    """Nothing waits before it, so it begins all the same, and is the first to look for capacity again."""
    async with arriving(tmp_path, clock, max_concurrent=1, rate_per_minute=2) as broker:
        await broker.order()
        task = await broker.order()
        assert broker.begun[1:] == [task]
        assert (task.state, task.attempt, task.version) == (TaskState.QUEUED, 0, 1)
        assert not await broker.services.tables.attempts.list_of_task(task.id)
        usage = await broker.services.tables.rate_limits.get(task.caller)
        assert usage is not None and usage.used == 2, "the first run of its transaction counts nothing"


async def test_intents_of_several_images_are_written_all_or_none(tmp_path: Path, clock: ManualClock) -> None:
    async with arriving(tmp_path, clock, max_concurrent=2) as broker:
        tasks = await create_tasks(broker.services, replace(FOX, count=3))
        rows = [await broker.services.tables.tasks.get(task.id) for task in tasks]
        assert [row and row.state for row in rows] == [TaskState.QUEUED] * 3
        assert len(broker.begun) == 3


async def test_order_that_is_written_while_the_worker_stops_goes_back_into_the_queue(
    tmp_path: Path, clock: ManualClock
) -> None:
    """Its outcome would count as unknown, and it would fail at its deadline, although nothing was sent."""
    async with arriving(tmp_path, clock) as broker:
        services, arrivals = broker.services, broker.services.arrivals
        arrival = await arrivals.take((_like_new(await broker.order()),))
        rows = [services.tables.tasks.insert_task(row) for row in arrival.rows]
        arrival.outcomes = await services.database.transact(*rows, *arrival.reservations)
        services.next_steps.start = None
        await arrivals.finish(arrival, is_written=True)
        task = await services.tables.tasks.get(arrival.rows[0].id)
        attempt = await services.tables.attempts.get(arrival.rows[0].id, 1)
        assert task is not None and attempt is not None
        assert (task.state, task.leased_by, attempt.outcome, attempt.billed) == (TaskState.QUEUED, "", "refused", "no")
        assert broker.free == CONCURRENCY[TaskState.QUEUED]


async def test_one_order_that_cannot_go_back_into_the_queue_does_not_keep_the_others(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with arriving(tmp_path, clock) as broker:
        services, arrivals = broker.services, broker.services.arrivals
        arrival = await arrivals.take(tuple([_like_new(await broker.order()) for _ in range(2)]))
        rows = [services.tables.tasks.insert_task(row) for row in arrival.rows]
        arrival.outcomes = await services.database.transact(*rows, *arrival.reservations)
        first, second = [row.id for row in arrival.rows]
        await services.database.execute(
            f"CREATE TRIGGER broken BEFORE UPDATE ON tasks WHEN NEW.id = '{first}' BEGIN SELECT RAISE(ABORT, ''); END"
        )
        services.next_steps.start = None
        await arrivals.finish(arrival, is_written=True)
        found = await services.database.fetch("SELECT id, state FROM tasks")
        states = {row["id"]: row["state"] for row in found}
        assert [states[first], states[second]] == [TaskState.SUBMITTING, TaskState.QUEUED]


class LosingTheEnd(SqliteDatabase):
    """Commits the first order, and then fails as if the end of the transaction were unknown."""

    error: ClassVar[BaseException]
    orders = 0

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        outcomes = await super().transact(*statements, wake=wake)
        if any("INTO tasks" in statement.sql for statement in statements):
            self.orders += 1
            if self.orders == 1:
                raise self.error
        return outcomes


@pytest.mark.parametrize("error", [StorageError("it is unknown"), asyncio.CancelledError()], ids=["lost", "canceled"])
async def test_order_whose_request_did_not_see_its_commit_is_submitted_once(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LosingTheEnd, "error", error, raising=False)
    async with open_broker(
        tmp_path, open_database=lambda settings: LosingTheEnd(sqlite_path(settings.database))
    ) as broker:
        orders, next_steps = broker.services.orders, broker.services.next_steps

        async def is_working() -> bool:
            return next_steps.is_open

        await until(is_working)
        with pytest.raises(type(error)):
            await orders.create("house:local", FOX, await orders.plan("house:local", FOX))
        row: Any = await broker.services.database.fetch_one("SELECT id, attempt FROM tasks")
        assert (await broker.wait_end(row["id"]))["status"] == "completed"
        assert row["attempt"] == 1
        assert len(await broker.provider_jobs()) == 1


async def test_repeated_and_refused_orders_begin_nothing_and_keep_no_slot(tmp_path: Path, clock: ManualClock) -> None:
    async with arriving(tmp_path, clock, rate_per_minute=1) as broker:
        request = replace(FOX, idempotency_key="one-click")
        assert await broker.order(request) == await broker.order(request)
        with pytest.raises(ApiError):
            await broker.order()
        assert len(broker.begun) == 1
        assert broker.free == CONCURRENCY[TaskState.QUEUED]


async def test_order_waits_for_its_turn_behind_another(tmp_path: Path, clock: ManualClock) -> None:
    async with arriving(tmp_path, clock) as broker:
        start, broker.services.next_steps.start = broker.services.next_steps.start, None
        await broker.order()
        broker.services.next_steps.start = start
        assert not (await broker.order()).leased_by
        assert not broker.begun


async def test_order_waits_while_its_provider_is_paused(tmp_path: Path, clock: ManualClock) -> None:
    async with arriving(tmp_path, clock) as broker:
        await broker.services.database.transact(
            broker.services.tables.provider_limits.pause_provider("kie", clock.now())
        )
        assert not (await broker.order()).leased_by
        assert not broker.begun


async def test_order_with_references_waits_for_capacity(tmp_path: Path, clock: ManualClock) -> None:
    """Its upload would hold a slot that orders for other providers can use."""
    async with arriving(tmp_path, clock, max_concurrent=1) as broker:
        request = replace(FOX, sources=(DataUriReference(text=PICTURE),))
        first = await broker.order(request)
        await _occupy(broker.services, first, clock)
        assert not (await broker.order(request)).leased_by
        assert broker.begun == [first]


async def test_order_for_a_lane_without_capacity_wakes_no_worker_until_that_may_have_changed(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with arriving(tmp_path, clock, max_concurrent=1) as broker:
        await broker.order()
        broker.services.next_steps.start, start = None, broker.services.next_steps.start
        await broker.order()
        broker.services.next_steps.start = start
        lanes, lease = broker.services.submissions.lanes, new_lease(clock, 1.0)
        with broker.services.database.listen(DUE_CHANNEL) as woken:
            assert not await broker.services.submissions.claim("kie", lease, limit=1)
            assert not (await broker.order()).leased_by
            assert not await woken.wait(0)

            arrival = await broker.services.arrivals.take((_like_new(await broker.order()),))
            lanes.forget_full("kie")  # a job ends before the commit
            await broker.services.arrivals.finish(arrival, is_written=True)
            assert await woken.wait(0)

            assert not await broker.services.submissions.claim("kie", lease, limit=1)
            clock.advance(PAUSE_SECONDS)
            assert not (await broker.order()).leased_by
            assert await woken.wait(0)


@pytest.mark.parametrize("account", ["kie", "kie@1"])
async def test_worker_that_finds_no_due_order_forgets_that_a_lane_was_full(
    tmp_path: Path, clock: ManualClock, account: str
) -> None:
    """The orders before were canceled, so the worker does not look at the lane again by itself."""
    async with arriving(tmp_path, clock) as broker:
        broker.services.submissions.lanes.record_full(account, until=clock.now() + PAUSE_SECONDS)
        await broker.services.worker.poll_once()
        assert not broker.services.submissions.lanes.is_full(account)


async def test_lane_whose_last_order_is_canceled_while_the_worker_looks_at_it_is_not_left_full(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with arriving(tmp_path, clock, max_concurrent=1) as broker:
        services = broker.services
        await broker.order()
        services.next_steps.start, start = None, services.next_steps.start
        last = await broker.order()
        services.next_steps.start = start
        claim = SubmissionQueue.claim

        async def claim_then_cancel(self: SubmissionQueue, account: str, lease: Lease, *, limit: int) -> list[Task]:
            claimed = await claim(self, account, lease, limit=limit)
            assert self.lanes.is_full(account)
            await services.database.execute("UPDATE tasks SET state = 'canceled' WHERE id = :id", id=last.id)
            return claimed

        monkeypatch.setattr(SubmissionQueue, "claim", claim_then_cancel)
        await services.worker.poll_once()
        assert not services.submissions.lanes.is_full("kie")


async def test_held_turns_and_orders_with_slots_of_their_own_and_for_several_providers_are_left_to_a_claim(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with arriving(tmp_path, clock, openrouter_keys="a-key-of-openrouter-0123456789") as broker:
        task, arrivals = await broker.order(replace(FOX, provider="kie")), broker.services.arrivals
        new = _like_new(task)
        held = replace(new, due_at=new.deadline_at + 1)
        slow = replace(new, provider="openrouter")
        for tasks in [(held,), (slow,), (new, replace(slow, id=new_task_id(clock.now())))]:
            arrival = await arrivals.take(tasks)
            assert (arrival.tasks, arrival.is_promised) == (tasks, False)
            await arrivals.finish(arrival, is_written=True)
        assert [one.id for one in broker.begun] == [task.id]


async def test_cooldown_that_another_process_began_stops_a_submission_that_has_begun(
    tmp_path: Path, clock: ManualClock
) -> None:
    """The status of the providers, half a second old, does not show it; the provider may bill each further order."""
    async with arriving(tmp_path, clock) as broker, still(tmp_path, clock) as other:
        await broker.services.router.statuses()
        limits = other.tables.provider_limits
        (key,) = broker.services.accounts.house["kie"].accounts
        await other.database.transact(limits.start_cooldown("kie", key, clock.now() + 30, "provider_unavailable"))
        task = await broker.order()
        assert broker.begun == [task]
        provider = _Accepting(broker.services.accounts.house["kie"].preferred)
        submit = broker.services.worker.steps.submit
        accounts = one_account(submit.accounts, "kie", provider)
        await replace(submit, accounts=accounts, queue=replace(submit.queue, accounts=accounts)).run(task)
        after = await broker.services.tables.tasks.get(task.id)
        assert after is not None
        assert (provider.submitted, after.state, after.leased_by) == (0, TaskState.QUEUED, "")


def _like_new(task: Task) -> Task:
    """Return a new task like one that was written."""
    unsent = {"state": TaskState.QUEUED, "attempt": 0, "version": 1, "leased_by": "", "lease_until": 0.0}
    return changed_row(task, {**unsent, "id": new_task_id(task.created_at)})


class _Accepting:
    """A provider that accepts every order."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self.submitted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    async def submit(self, order: Any, callback_url: str | None, sink: Any) -> Any:
        self.submitted += 1
        return Pending(job_id="job")


async def _occupy(services: Services, task: Task, clock: ManualClock) -> None:
    """Let a task occupy a place at its provider."""
    limits, provider = services.tables.provider_limits, services.providers["kie"]
    attempt = Attempt(task_id=task.id, number=1, provider="kie", key_id=provider.key_id, sent_at=clock.now())
    await services.database.transact(
        services.tables.tasks.update_task(task, state=TaskState.WAITING, key_id=provider.key_id, attempt=1),
        *limits.reserve_submission(attempt, account_limits(provider)),
    )
