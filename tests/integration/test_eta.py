"""Position in the queue, progress at the provider, and the ETA from our own history."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.reports import Finished, Pending
from broker.sandbox.engine import Options
from broker.services import Services
from broker.tasks import eta
from broker.tasks.eta import round_up
from storage.sql.scope import EVERYTHING
from storage.states import TaskState
from storage.tasks import Task
from tests.api.test_api_tasks import NOTHING_KNOWN, get_data, parsed
from tests.support.api import NEVER, a_task, open_api, task_cache
from tests.support.brokers import open_broker, still
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

NOW = 1_790_000_000.0


@pytest.fixture
async def quiet(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Services]:
    """A broker with a manual clock and an idle worker."""
    async with still(tmp_path, clock, creates_per_10s=2, max_concurrent=3) as services:
        yield services


async def add(services: Services, *tasks: Task) -> None:
    await services.database.transact(*(services.tables.tasks.insert_task(task) for task in tasks))


def queued(number: int, **changes: Any) -> Task:
    return a_task(NOW, **{"number": number, "state": TaskState.QUEUED, "attempt": 0, "due_at": NOW + number, **changes})


def done(number: int, *, making: float = 20.0, fetching: float = 2.0, **changes: Any) -> Task:
    ended = NOW - 1000 + number
    times = {"ended_at": ended, "finished_at": ended - fetching, "sent_at": ended - fetching - making}
    return a_task(NOW, **{"number": 1000 + number, "state": TaskState.SUCCEEDED, **times, **changes})


async def position_and_eta(services: Services, task: Task) -> tuple[int | None, int | None]:
    """Position and ETA."""
    progress = await services.eta.estimate(task)
    return progress.position, progress.eta


# -- the position


async def test_position_is_the_order_of_submission(quiet: Services) -> None:
    """A task with a later due time is behind the others; each provider has its own queue."""
    late, other = queued(1, due_at=NOW + 900), queued(9, provider="other", due_at=NOW)
    tasks = [queued(n) for n in (2, 3, 4)]
    await add(quiet, late, other, *tasks)
    assert [(await position_and_eta(quiet, task))[0] for task in (*tasks, late, other)] == [1, 2, 3, 4, 1]


async def test_one_read_of_the_queue_serves_all_callers_for_a_moment(quiet: Services, clock: ManualClock) -> None:
    first, second = queued(1), queued(2)
    await add(quiet, first, second)
    places = await asyncio.gather(*(position_and_eta(quiet, task) for task in [second] * 50))
    assert {place for place, _ in places} == {2}
    await quiet.database.transact(quiet.tables.tasks.update_task(first, state=TaskState.WAITING))
    await add(quiet, queued(3))
    assert (await position_and_eta(quiet, second))[0] == 2
    assert (await position_and_eta(quiet, queued(3)))[0] is None  # queued after the read
    clock.advance(eta.QUEUE_TTL_SECONDS)
    assert [(await position_and_eta(quiet, task))[0] for task in (second, queued(3))] == [1, 2]


async def test_position_beyond_the_limit_is_the_limit_plus_one(quiet: Services) -> None:
    quiet.eta.max_positions = 3
    tasks = [queued(n) for n in range(1, 7)]
    await add(quiet, *tasks, *(done(n) for n in range(9)))
    assert [(await position_and_eta(quiet, task))[0] for task in tasks] == [1, 2, 3, 4, 4, 4]
    assert (await position_and_eta(quiet, tasks[-1]))[1] is None


async def test_only_a_queued_task_has_a_position(quiet: Services) -> None:
    for state in (TaskState.SUBMITTING, TaskState.WAITING, TaskState.FETCHING, TaskState.SUCCEEDED, TaskState.FAILED):
        assert (await position_and_eta(quiet, a_task(NOW, state=state)))[0] is None


# -- the estimate


async def test_estimate_is_the_median_of_similar_tasks(quiet: Services, clock: ManualClock) -> None:
    """Of the same model and resolution; one extreme value does not change it."""
    alike = [done(n, making=m, resolution="2K") for n, m in enumerate((10, 20, 30, 40, 9000))]
    others = [done(n, making=500.0, resolution="4K") for n in range(10, 20)]
    await add(quiet, *alike, *others)
    task = a_task(NOW, state=TaskState.WAITING, resolution="2K", sent_at=NOW)
    assert await position_and_eta(quiet, task) == (None, 40)  # 30 at the provider, 2 for the download, in steps of ten
    clock.advance(25)
    assert await position_and_eta(quiet, task) == (None, 10)
    assert await position_and_eta(
        quiet, a_task(NOW, state=TaskState.FETCHING, resolution="2K", finished_at=clock.now())
    ) == (None, 5)


async def test_history_falls_back_to_the_model_then_the_provider_then_none(quiet: Services, clock: ManualClock) -> None:
    task = a_task(NOW, state=TaskState.WAITING, resolution="2K", sent_at=NOW)
    pro = a_task(NOW, state=TaskState.WAITING, model="nano-banana-pro", sent_at=NOW)
    await add(quiet, *(done(n, resolution="1K") for n in range(4)))
    assert await position_and_eta(quiet, task) == (None, None)
    await add(quiet, done(5, resolution="4K"))
    clock.advance(eta.HISTORY_TTL_SECONDS)
    now = clock.now()
    assert await position_and_eta(quiet, replace(task, sent_at=now)) == (None, 25)
    assert await position_and_eta(quiet, replace(pro, sent_at=now)) == (None, 25)
    assert await position_and_eta(quiet, a_task(NOW, state=TaskState.WAITING, provider="other", sent_at=NOW)) == (
        None,
        None,
    )


async def test_nothing_is_promised_while_the_provider_is_paused(quiet: Services, clock: ManualClock) -> None:
    """Only the operator knows when it ends; the position is known."""
    task, limits = queued(9), quiet.tables.provider_limits
    await add(quiet, task, *(done(n) for n in range(5)))
    await quiet.database.transact(limits.pause_provider("kie", clock.now()))
    assert await position_and_eta(quiet, task) == (1, None)
    await quiet.database.transact(*limits.resume_provider("kie"))
    clock.advance(eta.QUEUE_TTL_SECONDS)
    assert await position_and_eta(quiet, task) == (1, 30)


async def test_estimates_follow_the_turns_of_the_callers(quiet: Services) -> None:
    """A single image, ordered last, is not behind the hundreds of another caller."""
    many = [queued(n, caller="a", due_at=NOW - 1) for n in range(10, 510)]
    single = queued(900, caller="b", due_at=NOW)
    await add(quiet, *many, single, *(done(n) for n in range(5)))
    (place, soon), (last, later) = [await position_and_eta(quiet, task) for task in (single, many[-1])]
    assert (place, last) == (2, 501)
    assert soon is not None
    assert later is not None
    assert soon < later


async def test_exceeded_estimate_disappears(quiet: Services, clock: ManualClock) -> None:
    await add(quiet, *(done(n) for n in range(5)))
    task = a_task(NOW, state=TaskState.WAITING, sent_at=NOW)
    clock.advance(22)
    assert await position_and_eta(quiet, task) == (None, None)
    assert (await quiet.eta.estimate(task)).fresh_for == math.inf
    clock.advance(-3600)  # the clock was set back
    assert (await position_and_eta(quiet, task))[1] == 25


async def test_queued_estimate_includes_window_slots_and_cooldown(quiet: Services, clock: ManualClock) -> None:
    """Two submissions per ten seconds, three slots, 20 seconds each, and two for the download."""
    tasks = [queued(n, due_at=NOW) for n in range(1, 9)]
    await add(quiet, *tasks, *(done(n) for n in range(5)))
    # the fourth waits 7 for a slot and 10 for the window, the eighth 33 for a slot
    assert [(await position_and_eta(quiet, task))[1] for task in (tasks[0], tasks[1], tasks[3], tasks[7])] == [
        25,
        25,
        40,
        60,
    ]
    limits, key_id = quiet.tables.provider_limits, quiet.provider.key_id
    await quiet.database.transact(limits.start_cooldown("kie", key_id, NOW + 300, "provider_unavailable"))
    clock.advance(eta.QUEUE_TTL_SECONDS)
    assert (await position_and_eta(quiet, tasks[0]))[1] == 330
    assert (await position_and_eta(quiet, queued(1, due_at=NOW + 400)))[1] == 450  # due later


@pytest.mark.parametrize(
    ("seconds", "estimate"),
    [(-1, None), (0, None), (0.1, 5), (5, 5), (5.1, 10), (30, 30), (31, 40), (120, 120), (121, 150), (601, 660)],
)
def test_estimates_are_rounded_up_to_steps(seconds: float, estimate: int | None) -> None:
    assert round_up(seconds) == estimate


def test_rounded_estimate_is_stable_until_the_next_step() -> None:
    """A response is built and sent only when it is different."""
    for left in (1.0, 4.9, 5.0, 17.2, 30.0, 30.1, 119.0, 599.0, 4000.0):
        stands = eta.stable_for(left)
        assert stands > 0
        assert round_up(left - stands + 0.001) == round_up(left)
        assert round_up(left - stands) != round_up(left)


# -- in responses


async def test_queued_task_shows_its_position_and_a_new_etag(tmp_path: Path, clock: ManualClock) -> None:
    async with open_api(tmp_path, clock=clock) as broker:
        tasks = [await broker.add_task(number=n, state=TaskState.QUEUED, attempt=0) for n in (1, 2)]
        path = f"/api/task/{tasks[1].id}"
        first = await broker.client.get(path)
        assert first.json()["data"]["progress"] == {**NOTHING_KNOWN, "stage": "queued", "position": 2}
        same = await broker.client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert same.status_code == 304
        await broker.change_task(tasks[0], state=TaskState.CANCELED, ended_at=5.0)
        clock.advance(eta.QUEUE_TTL_SECONDS)
        cache = task_cache(broker.services)
        prepared = await cache.response(tasks[1].id, "en")
        assert b'"position":1' in prepared.body
        assert prepared.tag != first.headers["etag"]


async def test_stream_sends_each_new_position(tmp_path: Path) -> None:
    """The row does not change when other tasks leave the queue."""
    async with open_api(tmp_path, sockets=True) as broker:
        tasks = [await broker.add_task(number=n, state=TaskState.QUEUED, attempt=0) for n in (1, 2)]
        received = ""
        async with asyncio.timeout(10), broker.client.stream("GET", f"/api/task/{tasks[1].id}/events") as answer:
            async for text in answer.aiter_text():
                received += text
                places = [document["data"]["progress"]["position"] for _, document in parsed(received)]
                if places == [2]:
                    await broker.change_task(tasks[0], state=TaskState.CANCELED, ended_at=5.0)
                elif places == [2, 1]:
                    break
        assert [document["data"]["status"] for _, document in parsed(received)] == ["pending", "pending"]


async def test_ended_task_has_no_progress(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        progress = {"provider_state": "generating", "provider_percent": 40.0, "sent_at": 1.0}
        task = await broker.add_task(state=TaskState.CANCELED, ended_at=1.0, error_code="canceled", **progress)
        assert (await get_data(broker, task.id))["progress"] == {**NOTHING_KNOWN, "stage": "done"}


async def test_a_task_that_is_not_queued_is_one_point_read_per_poll(tmp_path: Path) -> None:
    """Its response is valid until the estimate changes: neither queue nor history is read."""
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(provider_state="generating", provider_percent=40.4, sent_at=NOW)
        cache = task_cache(broker.services)
        first = await cache.response(task.id, "en")
        assert b'"providerState":"generating","percent":40,' in first.body
        await broker.services.database.execute("DROP INDEX tasks_history")
        await broker.services.database.execute("ALTER TABLE tasks RENAME COLUMN finished_at TO gone")
        assert await cache.response(task.id, "en") is first


# -- progress at the provider


async def test_new_provider_state_updates_the_task_and_a_repeated_one_does_not(
    quiet: Services, clock: ManualClock
) -> None:
    """Waiting callers see a new state; a repeated one changes no response."""
    task = a_task(NOW, job_id="job", due_at=NOW, provider="kie")
    await add(quiet, task)
    steps = quiet.worker.steps
    for stage, percent, is_new in (("waiting", None, True), ("waiting", None, False), ("generating", 40.0, True)):
        clock.advance(60)
        before = await quiet.queries.get(task.id, EVERYTHING)
        await steps.transitions.apply_report(before, Pending(job_id="job", stage=stage, percent=percent), 0)
        row = await quiet.queries.get(task.id, EVERYTHING)
        assert (row.provider_state, row.provider_percent) == (stage, percent)
        assert (row.updated_at == clock.now()) is is_new
        assert row.version == before.version + 1  # the next check is stored in any case


async def test_stream_sends_the_provider_state(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(job_id="job")
        async with aclosing(broker.services.queries.changes(task.id, EVERYTHING)) as changes:
            await anext(changes)
            words = [(await broker.services.queries.get(task.id, EVERYTHING)).provider_state]
            await broker.services.worker.steps.transitions.apply_report(task, Pending(job_id="job", stage="queuing"), 0)
            async with asyncio.timeout(1):
                await anext(changes)
            words.append((await broker.services.queries.get(task.id, EVERYTHING)).provider_state)
        assert words == [None, "queuing"]
        assert (await get_data(broker, task.id))["progress"]["providerState"] == "queuing"


async def test_times_are_stored_for_later_estimates(quiet: Services, clock: ManualClock) -> None:
    task = a_task(NOW, job_id="job", due_at=NEVER, sent_at=NOW, outputs=())
    await add(quiet, task)
    clock.advance(17)
    await quiet.worker.steps.transitions.apply_report(task, Finished(outputs=("https://a/1",), job_id="job"), 0)
    row = await quiet.queries.get(task.id, EVERYTHING)
    assert (row.state, row.sent_at, row.finished_at, row.entered_at) == (TaskState.FETCHING, NOW, NOW + 17, NOW + 17)


async def test_poll_shows_the_progress_at_the_provider(tmp_path: Path) -> None:
    """Over HTTP, by polling: the sandbox uses the states of kie.ai."""
    async with open_broker(tmp_path, with_callbacks=False, options=Options(duration=0.9)) as broker:
        task_id = await broker.create_task("a red bicycle")
        seen: list[str | None] = []
        async for data in broker.poll_task(task_id):
            seen.append(data["progress"]["providerState"])
            if data["status"] == "completed":
                break
        assert {"queuing", "generating"} <= set(seen)
        assert set(seen) <= {None, "waiting", "queuing", "generating"}
        assert seen[-1] is None
