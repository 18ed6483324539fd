"""Usage of owners in the database: reservations of two processes fill a quota exactly, and are settled once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from storage.attempts import Attempt
from storage.errors import Stale
from storage.files.resumable_uploads import ResumableUpload, ResumableUploads
from storage.files.uploaded_files import UploadedFile, UploadedFiles
from storage.ids import reference_owner
from storage.images import Images, StoredImage
from storage.ledger import SECONDS_PER_DAY
from storage.limits.budgets import Budgets
from storage.limits.owner_usage import MIN_STORED_BYTES, OwnerLimits, OwnerUsage, OwnerUse
from storage.limits.rate_limits import RateLimits
from storage.limits.settlement import settle_task
from storage.sql.database import Statement
from storage.states import TaskState
from storage.tasks import Task, Tasks
from tests.integration.storage.test_budgets import DOLLAR, SETTLEMENTS, an_attempt, processes
from tests.integration.storage.test_ledger import NOON, TODAY, add_attempts
from tests.integration.storage.test_tasks import a_task

__all__ = ["processes"]

pytestmark = pytest.mark.anyio

ANN = f"user_{'a' * 32}"
IMAGE_AND_CENT = OwnerUse(images=1, micros=DOLLAR // 100)


async def is_written(writing: Awaitable[Any]) -> bool:
    try:
        await writing
    except Stale:
        return False
    return True


async def reserve(database: Any, needs: OwnerUse, *, owner: str = ANN, day: int = TODAY, **limits: Any) -> bool:
    statement = OwnerUsage(database).reserve(owner, day, needs, OwnerLimits(**limits))
    return await is_written(database.transact(statement))


async def used(database: Any, *, owner: str = ANN, day: int = TODAY) -> tuple[int, int]:
    use = await OwnerUsage(database).read_use(owner, day)
    return use.images, use.micros


@pytest.mark.parametrize("limits", [{"images": 10}, {"micros": DOLLAR // 10}], ids=["images", "usd"])
async def test_reservations_of_two_processes_fill_a_day_to_the_last_image(
    processes: list[Any], limits: dict[str, Any]
) -> None:
    tries = [reserve(processes[number % 2], IMAGE_AND_CENT, **limits) for number in range(16)]
    assert sum(await asyncio.gather(*tries)) == 10
    assert await used(processes[0]) == (10, DOLLAR // 10)
    assert await reserve(processes[0], IMAGE_AND_CENT, owner="key_b", **limits), "each owner has its own"
    assert await reserve(processes[0], IMAGE_AND_CENT, day=TODAY + 1, **limits), "and each day"


async def test_limit_below_what_is_used_refuses_the_first_and_every_further_order(processes: list[Any]) -> None:
    """Also a limit of 0. What costs nothing has no part in a limit of USD, however much is used of it."""
    database = processes[0]
    assert not await reserve(database, IMAGE_AND_CENT, images=0)
    assert not await reserve(database, IMAGE_AND_CENT, micros=0)
    assert not await reserve(database, OwnerUse(images=3), images=2)
    assert await used(database) == (0, 0)
    assert await reserve(database, OwnerUse(images=5, micros=DOLLAR))
    assert not await reserve(database, OwnerUse(images=1), images=3)
    assert not await reserve(database, OwnerUse(micros=1), micros=DOLLAR // 2)
    assert await reserve(database, OwnerUse(images=1), images=6, micros=0)
    assert await used(database) == (6, DOLLAR)


def room_for(database: Any, needs: OwnerUse, **limits: Any) -> list[Statement]:
    room = OwnerUsage(database).require_room(ANN, needs, OwnerLimits(**limits))
    return [RateLimits(database).lock_usage(ANN), *room]


async def fits(database: Any, needs: OwnerUse, **limits: Any) -> bool:
    return await is_written(database.transact(*room_for(database, needs, **limits)))


def tasks_of_ann(*numbers: int, **changes: Any) -> list[Task]:
    return [a_task(number, caller=ANN, **changes) for number in numbers]


async def test_tasks_in_flight_are_counted_one_transaction_after_the_other(processes: list[Any]) -> None:
    """Without the lock before the count, transactions at the same time on Postgres do not see each other's tasks."""
    one, insert = OwnerUse(in_flight=1), Tasks(processes[0]).insert_task
    await processes[0].transact(RateLimits(processes[0]).lock_usage(ANN))  # the row is there before
    orders = [
        is_written(database.transact(*room_for(database, one, in_flight=4), insert(task)))
        for database, task in zip(processes * 8, tasks_of_ann(*range(16)), strict=True)
    ]
    assert sum(await asyncio.gather(*orders)) == 4
    assert (await OwnerUsage(processes[0]).read_use(ANN, TODAY)).in_flight == 4


async def test_counts_are_of_what_is_there(processes: list[Any]) -> None:
    """Ended tasks, thumbnails, finished uploads and what others have do not count; a small file counts as a block."""
    database = processes[0]
    rows, images = Tasks(database), Images(database)
    running, late, ended = tasks_of_ann(1, 2, 3, batch="batch_1")
    late, ended = replace(late, ended_at=NOON, state=TaskState.FETCHING), replace(ended, ended_at=NOON, pinned_at=NOON)
    foreign = a_task(4, caller="key_b", pinned_at=NOON)
    upload = ResumableUpload(id="1", owner="upload_1", caller=ANN, name="", received=6000, created_at=NOON)
    finished = replace(upload, id="2", owner="upload_2", finished_as="2")
    await database.transact(
        *(rows.insert_task(task) for task in (running, late, ended, foreign)),
        images.insert_image(an_image(ended.id, "result", 10_000)),
        images.insert_image(an_image(ended.id, "thumbnail-128", 9_000)),
        images.insert_image(an_image(reference_owner("batch_1"), "reference", 5_000)),
        images.insert_image(an_image(foreign.id, "result", 50_000)),
        UploadedFiles(database).insert_file(a_file("1", ANN, 3)),
        UploadedFiles(database).insert_file(a_file("2", "key_b", 70_000)),
        *(ResumableUploads(database).insert_upload(one) for one in (upload, finished)),
    )
    stored = 10_000 + 5_000 + MIN_STORED_BYTES + 6000
    use = await OwnerUsage(database).read_use(ANN, TODAY)
    assert use == OwnerUse(in_flight=1, pins=1, stored_bytes=stored)
    assert await OwnerUsage(database).read_use(ANN, TODAY, ["pins"]) == OwnerUse(pins=1)
    for name, count in (("in_flight", 1), ("pins", 1), ("stored_bytes", stored)):
        assert await fits(database, OwnerUse(**{name: 2}), **{name: count + 2})
        assert not await fits(database, OwnerUse(**{name: 2}), **{name: count + 1})
        assert await fits(database, OwnerUse(), **{name: 0}), "what is not needed is not limited"


def an_image(owner: str, kind: Any, size: int) -> StoredImage:
    return StoredImage(
        name=f"{owner}-{kind}",
        owner=owner,
        kind=kind,
        position=0,
        blob="b",
        media_type="image/png",
        size=size,
        width=1,
        height=1,
        sha256="0",
        created_at=NOON,
    )


def a_file(file_id: str, caller: str, size: int) -> UploadedFile:
    return UploadedFile(
        owner=f"file_{file_id}",
        caller=caller,
        id=file_id,
        name="",
        blob="b",
        media_type="image/png",
        size=size,
        width=1,
        height=1,
        sha256="0",
        created_at=NOON,
    )


async def settle(database: Any, task: Task, attempts: Iterable[Attempt]) -> tuple[int | None, ...]:
    """Add a task with these attempts, settle it twice, and return what it counts as then."""
    await database.transact(Tasks(database).insert_task(task))
    await add_attempts(database, *(replace(attempt, task_id=task.id) for attempt in attempts))
    for _ in range(2):
        await database.transact(*settle_task(task))
    fresh = await Tasks(database).get(task.id)
    assert fresh is not None
    return fresh.owner_images, fresh.owner_micros, fresh.reserved


OWN: dict[str, Any] = {"provider": "kie@key_1", "billed": "yes", "cost": 3.0}
COUNTED: dict[str, tuple[list[Attempt], int, float]] = {
    **{name: (attempts, name not in {"no attempt", "free"}, usd) for name, (attempts, usd) in SETTLEMENTS.items()},
    "made": ([an_attempt(billed="yes", outcome="succeeded")], 1, 0.02),
    "made without cost": ([an_attempt(billed="no", outcome="succeeded")], 1, 0.0),
    "twice": ([an_attempt(billed="unknown"), an_attempt(2, billed="yes", outcome="succeeded")], 1, 0.04),
    "made at an own account": ([an_attempt(**OWN, outcome="succeeded")], 1, 0.0),
    "failed at an own account": ([an_attempt(**OWN, outcome="failed", duplicate_cost=9.0)], 0, 0.0),
    "at both": ([an_attempt(**OWN, outcome="failed"), an_attempt(2, billed="yes", outcome="succeeded")], 1, 0.02),
}
"""Attempts, images, USD."""


async def test_settled_task_counts_as_what_its_attempts_say(processes: list[Any]) -> None:
    """In the usage of its owner and in the daily budget, of the day of the order; an own account costs neither."""
    database, usage, found = processes[0], OwnerUsage(processes[0]), {}
    for number, (name, (attempts, _, _)) in enumerate(COUNTED.items()):
        at, day = NOON + number * SECONDS_PER_DAY, TODAY + number
        task = a_task(number, caller=ANN, state=TaskState.FAILED, created_at=at)
        reserving = usage.reserve(ANN, day, OwnerUse(images=1, micros=60_000), OwnerLimits())
        await database.transact(reserving, Budgets(database).reserve(day, 70, limit=DOLLAR))
        counted = await settle(database, replace(task, owner_images=1, owner_micros=60_000, reserved=70), attempts)
        found[name] = (*await used(database, day=day), await Budgets(database).get_used(day))
        assert found[name] == counted
    micros = {name: round(usd * 1_000_000) for name, (_, _, usd) in COUNTED.items()}
    assert found == {name: (images, micros[name], micros[name]) for name, (_, images, _) in COUNTED.items()}


async def test_task_settles_only_where_it_reserved(processes: list[Any]) -> None:
    """A budget that is set later has no part in it, and neither has the usage of an owner without quotas."""
    database = processes[0]
    await database.transact(Budgets(database).reserve(TODAY, 500, limit=DOLLAR))
    await reserve(database, OwnerUse(images=4, micros=400))
    paid = [an_attempt(billed="yes", cost=3.0, outcome="succeeded")]
    neither, private, house = tasks_of_ann(1, 2, 3, created_at=NOON, state=TaskState.FAILED)
    assert await settle(database, neither, paid) == (None, None, None)
    assert await settle(database, replace(private, owner_images=1, owner_micros=100), paid) == (1, 15_000, None)
    assert await settle(database, replace(house, reserved=200), paid) == (None, None, 15_000)
    assert await used(database) == (4, 15_300)
    assert await Budgets(database).get_used(TODAY) == 15_300


async def test_days_are_deleted_with_the_ledger_and_owners_with_their_account(processes: list[Any]) -> None:
    database, usage = processes[0], OwnerUsage(processes[0])
    for day in (TODAY - 402, TODAY - 401, TODAY - 400, TODAY):
        for owner in (ANN, "key_b"):
            await reserve(database, IMAGE_AND_CENT, owner=owner, day=day)
    assert [await usage.delete_older(NOON, 3), await usage.delete_older(NOON, 3)] == [3, 1]
    await database.transact(usage.delete_of_owner(ANN))
    rows = await database.fetch("SELECT owner, day FROM owner_usage ORDER BY day")
    assert [(row["owner"], row["day"]) for row in rows] == [("key_b", TODAY - 400), ("key_b", TODAY)]


async def test_orders_and_settlements_in_any_order_wait_and_end(processes: list[Any]) -> None:
    """They lock the rows that they share in one order, so that none is undone as a deadlock."""
    ended = tasks_of_ann(*range(10), created_at=NOON, owner_images=1, owner_micros=7, reserved=7)
    rows = Tasks(processes[0])
    budgets, usage = Budgets(processes[0]), OwnerUsage(processes[0])
    both = [
        usage.reserve(ANN, TODAY, OwnerUse(images=1, micros=7), OwnerLimits()),
        budgets.reserve(TODAY, 7, limit=999),
    ]
    for task in ended:
        await processes[0].transact(*both, rows.insert_task(task))
    async with asyncio.timeout(20):
        await asyncio.gather(
            *(processes[n % 2].transact(*settle_task(task)) for n, task in enumerate(ended)),
            *(processes[n % 2].transact(*room_for(processes[0], OwnerUse()), *both) for n in range(10)),
        )
    assert await used(processes[0]) == (10, 70)
    assert await budgets.get_used(TODAY) == 70
