"""Pins: what is kept beyond retention, and how many tasks an owner may pin."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from broker.clock import SystemClock
from broker.errors import ApiError
from broker.services import Services
from storage.accounts.api_keys import ApiKey
from storage.ids import new_api_key_id, new_user_id, reference_owner
from storage.images import StoredImage
from storage.sql.scope import HOUSE, Scope
from storage.states import TaskState
from storage.tasks import Lease, Task
from tests.contracts.databases import DATABASES
from tests.support.api import a_task
from tests.support.brokers import still
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

HOUR = 3600.0
DAY = 24 * HOUR


async def add_ended(services: Services, number: int, **changes: Any) -> Task:
    """Add a task that has just succeeded, with the file of its result."""
    now = services.clock.now()
    values = {"state": TaskState.SUCCEEDED, "ended_at": now, "due_at": now + DAY, "caller": "house:local", **changes}
    task = a_task(now, number=number, **values)
    await services.database.transact(services.tables.tasks.insert_task(task))
    await add_file(services, task.id, "result", number)
    return task


async def add_file(services: Services, owner: str, kind: Any, number: int) -> None:
    async with services.blobs.new_draft(owner) as draft:
        await draft.write(b"bytes %d" % number)
        blob = await draft.commit()
    image = StoredImage(
        name=f"{kind}_{number}.png", owner=owner, kind=kind, position=0, blob=blob.name, media_type="image/png",
        size=blob.size, width=1, height=1, sha256=blob.sha256, created_at=services.clock.now(),
    )  # fmt: skip
    await services.database.transact(services.tables.images.insert_image(image))


async def state_of(services: Services, task: Task) -> tuple[TaskState, float | None, float]:
    row = await services.tables.tasks.get(task.id)
    assert row is not None
    return row.state, row.pinned_at, row.due_at


def files(folder: Path) -> int:
    return sum(path.is_file() for path in (folder / "blobs").rglob("*"))


async def test_pinned_task_and_its_references_are_kept_until_it_is_unpinned(tmp_path: Path, clock: ManualClock) -> None:
    """Also beyond a retention time that was made shorter, and beyond the time of the other task of the request."""
    batch = f"batch_{7:043x}"
    async with still(tmp_path, clock) as services:
        pinned, other = [await add_ended(services, number, batch=batch) for number in (1, 2)]
        await add_file(services, reference_owner(batch), "reference", 3)
        task = await services.pins.pin_task(pinned.id, HOUSE)
        assert (task.pinned_at, task.due_at, task.expires_at(DAY)) == (clock.now(), math.inf, None)
        assert await services.pins.pin_task(pinned.id, HOUSE) == task, "a second pin changes nothing"
        pinned_at = clock.now()
        clock.advance(30 * DAY)
        assert (await services.worker.clean_up(), files(tmp_path)) == (1, 2)
    async with still(tmp_path, clock, retention_hours=1) as services:
        await services.worker.clean_up()
        assert files(tmp_path) == 2
        assert await state_of(services, pinned) == (TaskState.SUCCEEDED, pinned_at, math.inf)
        assert (await state_of(services, other))[0] == TaskState.EXPIRED
        task = await services.pins.unpin_task(pinned.id, HOUSE)
        assert (task.pinned_at, task.due_at) == (None, pinned_at + HOUR)
        assert (await services.worker.clean_up(), files(tmp_path)) == (1, 0)
        for change in (services.pins.pin_task, services.pins.unpin_task):
            with pytest.raises(ApiError) as refused:
                await change(pinned.id, HOUSE)
            assert refused.value.code == "task_expired"


async def test_pin_and_retention_of_the_same_moment_exclude_each_other(tmp_path: Path, clock: ManualClock) -> None:
    """Retention has claimed the row when it is pinned, and knows nothing of the pin."""
    async with still(tmp_path, clock) as services:
        first = await add_ended(services, 1)
        clock.advance(2 * DAY)
        lease = Lease(holder="a worker", until=clock.now() + 60)
        claimed = await services.tables.tasks.claim(TaskState.SUCCEEDED, now=clock.now(), lease=lease, limit=9)
        await services.pins.pin_task(first.id, HOUSE)
        await services.worker.retention.run(claimed)
        assert await state_of(services, first) == (TaskState.SUCCEEDED, clock.now(), math.inf)
        second = await add_ended(services, 2, due_at=clock.now())
        await services.database.execute("UPDATE tasks SET pinned_at = 1 WHERE id = :id", id=second.id)
        await services.worker.clean_up()
        assert await state_of(services, second) == (TaskState.SUCCEEDED, 1.0, math.inf), "due by mistake"


async def test_task_that_is_pinned_before_its_end_is_kept_after_it(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        task = await add_ended(services, 1, state=TaskState.QUEUED, ended_at=None, due_at=clock.now() + 5)
        pinned = await services.pins.pin_task(task.id, HOUSE)
        assert (pinned.state, pinned.due_at) == (TaskState.QUEUED, task.due_at), "its step is due as before"
        canceled = await services.canceler.cancel_task(task.id, HOUSE)
        assert (canceled.due_at, canceled.expires_at(DAY)) == (math.inf, None)
        await services.deleter.delete_task(task.id, HOUSE)
        assert (await state_of(services, task))[:2] == (TaskState.EXPIRED, None), "a deleted one is no pin any more"


@pytest.mark.parametrize("kind", DATABASES)
async def test_concurrent_pins_of_one_owner_stop_at_the_limit(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    settings: dict[str, Any] = {"user_pins": 3}
    if kind == "postgres":
        settings["database_url"] = await request.getfixturevalue("postgres").fresh()
    async with still(tmp_path, SystemClock(), **settings) as services:
        key_id = new_api_key_id()
        key = ApiKey(id=key_id, digest="d", prefix="p", name="n", owner=key_id, created_at=1.0)
        await services.database.transact(services.tables.api_keys.insert_key(key))
        mine = [await add_ended(services, number, caller=key_id) for number in range(10)]
        others = [await add_ended(services, 20 + number, caller=new_user_id()) for number in range(2)]

        async def is_pinned(pinning: Awaitable[Task]) -> bool:
            try:
                return (await pinning).pinned_at is not None
            except ApiError as error:
                assert (error.code, "3 tasks" in error.message) == ("quota_exceeded", True)
                return False

        pins, mine_only = services.pins, Scope(owner=key_id)
        await asyncio.gather(*(services.database.execute("DELETE FROM users") for _ in mine))  # opens connections
        pinning = [is_pinned(pins.pin_task(task.id, mine_only)) for task in mine]
        assert sum(await asyncio.gather(*pinning)) == 3
        assert await asyncio.gather(
            *(is_pinned(pins.pin_task(task.id, Scope(owner=task.caller))) for task in others)
        ) == [True, True]
        (kept, *_) = await services.database.fetch(
            "SELECT id FROM tasks WHERE caller = :me AND pinned_at > 0", me=key_id
        )
        assert await is_pinned(pins.pin_task(kept["id"], mine_only)), "it is pinned already"
        await pins.unpin_task(kept["id"], mine_only)
        assert await is_pinned(pins.pin_task(mine[-1].id, mine_only)) or await is_pinned(
            pins.pin_task(mine[0].id, mine_only)
        )
