"""Quotas of owners: exact on every database and over two brokers, refused with what is left and the time of reset."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from broker.accounts.quotas import QuotaExceeded
from broker.bootstrap import database_for
from broker.errors import ApiError
from broker.ordering.drafts import BatchDetails, PlannedOrder
from broker.ordering.files import FileDetails
from broker.orders import ImageParams, OrderRequest
from broker.services import Services
from broker.settings import Settings
from storage.errors import StorageError
from storage.ledger import SECONDS_PER_DAY
from storage.limits.budgets import day_of
from storage.limits.owner_usage import MIN_STORED_BYTES, OwnerLimits, OwnerUse
from storage.sql.database import Statement
from storage.sql.scope import Scope
from tests.support.accounts import KeyHolder, add_key_holder, set_quota
from tests.support.api import ApiBroker, open_api, png
from tests.support.brokers import create_tasks, still
from tests.support.clock import ManualClock
from tests.support.samples import encoded, picture
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio

CREATE = "/api/generate/image"
FOX = OrderRequest(params=ImageParams(prompt="a fox"))
PRICE = 0.02
MIDNIGHT = 20_000 * SECONDS_PER_DAY
NOON = MIDNIGHT + SECONDS_PER_DAY / 2
RATE: dict[str, Any] = {"rate_per_minute": 100_000}


@pytest.fixture
def clock() -> ManualClock:
    """Begins now: a broker compares its clock with that of the database."""
    return ManualClock(time.time())


@pytest.fixture(params=["sqlite", "postgres"])
async def brokers(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[tuple[Services, Services]]:
    """Two brokers on one database."""
    settings: dict[str, Any] = {**RATE}
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        settings["database_url"] = await server.fresh()
    clock.advance(time.time() - clock.now())  # a server may take a while to start
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(still(tmp_path, clock, **settings))
        yield one, await stack.enter_async_context(still(tmp_path, clock, **settings))


async def used(services: Services, owner: str, day: int | None = None) -> tuple[int, int]:
    """Return images and micros of a day, which the tasks that were created on it must agree with."""
    day = day_of(services.clock.now()) if day is None else day
    use = await services.tables.owner_usage.read_use(owner, day)
    rows = await services.database.fetch("SELECT * FROM tasks WHERE caller = :owner", owner=owner)
    of_day = [row for row in rows if day_of(row["created_at"]) == day]
    assert use.images == sum(row["owner_images"] for row in of_day)
    assert use.micros == sum(row["owner_micros"] for row in of_day)
    return use.images, use.micros


async def refused_quota(ordering: Awaitable[Any]) -> str | None:
    """Return the name of the quota that refuses an order; None if none does."""
    try:
        await ordering
    except QuotaExceeded as error:
        return error.state.name
    return None


async def test_two_hundred_orders_at_once_fill_each_quota_exactly(brokers: tuple[Services, Services]) -> None:
    """Orders of one image and of three; then ends and orders at the same time, of which none is refused wrongly."""
    ann = await add_key_holder(brokers[0], images=41)
    bob = await add_key_holder(brokers[0], name="bob", in_flight=31)
    eve = await add_key_holder(brokers[0], name="eve", usd=20.5 * PRICE)
    sizes = [1, 3] * 50
    holders = [ann] * 100 + [bob] * 50 + [eve] * 50

    async def order(number: int) -> str | None:
        request = replace(FOX, count=sizes[number % 100])
        return await refused_quota(create_tasks(brokers[number % 2], request, holders[number].owner))

    outcomes = await asyncio.gather(*map(order, range(200)))
    assert set(outcomes[:100]) == {None, "images"}
    assert set(outcomes[100:150]) == {None, "in_flight"}
    assert set(outcomes[150:]) == {None, "usd"}
    assert [(await used(brokers[0], one.owner))[0] for one in (ann, bob, eve)] == [41, 31, 20]

    rows = await brokers[0].database.fetch("SELECT id FROM tasks WHERE caller = :owner", owner=ann.owner)
    canceling = [brokers[n % 2].canceler.cancel_task(row["id"], Scope(owner=ann.owner)) for n, row in enumerate(rows)]
    again = [refused_quota(create_tasks(brokers[n % 2], FOX, ann.owner)) for n in range(60)]
    await asyncio.gather(*canceling, *again)
    while await refused_quota(create_tasks(brokers[0], FOX, ann.owner)) is None:
        pass
    assert (await used(brokers[1], ann.owner))[0] == 41


async def test_batch_fits_as_a_whole_or_not_at_all_and_a_repeated_order_counts_once(
    brokers: tuple[Services, Services],
) -> None:
    ann = await add_key_holder(brokers[0], images=6)
    details = BatchDetails(dialect="gemini", name="", model="nano-banana")

    async def order_batch(images: int) -> int:
        requests = [replace(FOX, params=ImageParams(prompt=f"fox {number}")) for number in range(images)]
        orders = [PlannedOrder(request=one, plan=await brokers[0].orders.plan(ann.owner, one)) for one in requests]
        return len((await brokers[0].orders.create_together(ann.owner, orders, details)).tasks)

    assert await refused_quota(order_batch(7)) == "images"
    assert await used(brokers[0], ann.owner) == (0, 0)
    assert await order_batch(4) == 4
    repeated = replace(FOX, count=2, idempotency_key="the same")
    orders = [create_tasks(brokers[number % 2], repeated, ann.owner) for number in range(6)]
    assert len({tasks[0].id for tasks in await asyncio.gather(*orders)}) == 1
    assert await used(brokers[0], ann.owner) == (6, round(6 * PRICE * 1e6))
    assert len(await create_tasks(brokers[1], repeated, ann.owner)) == 2, "although nothing is left"


@dataclass
class Interrupted:
    """A database in which something happens at the next transaction."""

    inner: Any
    around: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> Any:
        around, self.around = self.around, None
        if around is None:
            return await self.inner.transact(*statements, wake=wake)
        return await around(lambda: self.inner.transact(*statements, wake=wake))


@asynccontextmanager
async def interrupted(folder: Path, clock: ManualClock, **settings: Any) -> AsyncIterator[tuple[Services, Interrupted]]:
    databases: list[Interrupted] = []

    @asynccontextmanager
    async def open_database(settings: Settings) -> AsyncIterator[Any]:
        async with database_for(settings) as database:
            databases.append(Interrupted(database))
            yield databases[0]

    async with still(folder, clock, open_database=open_database, **RATE, **settings) as services:
        yield services, databases[0]


async def test_order_is_counted_exactly_if_the_database_fails_or_runs_it_twice(tmp_path: Path) -> None:
    """It fails before the commit, or after it; a connection that breaks at the commit makes it run once more."""
    async with interrupted(tmp_path, ManualClock(NOON)) as (services, database):
        ann = await add_key_holder(services, images=2, in_flight=2)

        async def fails_before(_: Any) -> Any:
            raise StorageError("out of reach")

        async def fails_after(commit: Any) -> Any:
            await commit()
            raise StorageError("out of reach")

        async def runs_twice(commit: Any) -> Any:
            await commit()
            return await commit()

        for around, images in ((fails_before, 0), (fails_after, 1)):
            database.around = around
            with pytest.raises(StorageError):
                await create_tasks(services, FOX, ann.owner)
            assert (await used(services, ann.owner))[0] == images
        database.around = runs_twice
        assert len(await create_tasks(services, FOX, ann.owner)) == 1, "the second run finds nothing left"
        assert (await used(services, ann.owner))[0] == 2


@pytest.mark.parametrize("limit", ["quota", "budget"])
async def test_order_that_is_written_after_midnight_counts_on_the_day_of_its_creation(
    tmp_path: Path, limit: str
) -> None:
    """What was left of that day is used up since the check: it is refused, and succeeds when it is repeated."""
    clock = ManualClock(MIDNIGHT - 1)
    settings = {"user_daily_images": 2} if limit == "quota" else {"daily_budget": 2 * PRICE}
    async with interrupted(tmp_path, clock, **settings) as (services, database):
        ann = await add_key_holder(services, is_user=False)
        (yesterday,) = await create_tasks(services, FOX, ann.owner)

        async def midnight(commit: Any) -> Any:
            await create_tasks(services, FOX, ann.owner)
            clock.advance(2)
            return await commit()

        database.around = midnight
        with pytest.raises(ApiError) as refused:
            await create_tasks(services, FOX, ann.owner)
        assert (refused.value.code, refused.value.retry_after) == ("quota_exceeded", 1)
        assert len(await create_tasks(services, replace(FOX, count=2), ann.owner)) == 2
        await services.canceler.cancel_task(yesterday.id, Scope(owner=ann.owner))
        assert [(await used(services, ann.owner, 20_000 - n))[0] for n in (0, 1)] == [2, 1]


async def test_usage_of_old_days_is_deleted(tmp_path: Path) -> None:
    async with still(tmp_path, ManualClock(NOON)) as services:
        for day in (19_599, 20_000):
            adding = services.tables.owner_usage.reserve("key_1", day, OwnerUse(images=1), OwnerLimits())
            await services.database.transact(adding)
        await services.worker.retention.delete_leftovers()
        rows = await services.database.fetch("SELECT day FROM owner_usage")
        assert [row["day"] for row in rows] == [20_000]


async def test_tasks_in_flight_are_the_same_after_midnight(tmp_path: Path) -> None:
    clock = ManualClock(MIDNIGHT - 1)
    async with still(tmp_path, clock, user_in_flight=2, **RATE) as services:
        ann = await add_key_holder(services)
        tasks = await create_tasks(services, replace(FOX, count=2), ann.owner)
        clock.advance(2)
        with pytest.raises(QuotaExceeded) as refused:
            await create_tasks(services, FOX, ann.owner)
        assert (refused.value.state.name, refused.value.retryable, refused.value.retry_after) == ("in_flight", True, 5)
        await services.canceler.cancel_task(tasks[0].id, Scope(owner=ann.owner))
        await create_tasks(services, FOX, ann.owner)


HOUSE_KEY = "key-of-the-house-0123456789"
HOUSE = {"authorization": f"Bearer {HOUSE_KEY}"}


async def order_as(broker: ApiBroker, holder: KeyHolder | None, **fields: Any) -> Any:
    """Order over HTTP; without a holder with a key of the operator."""
    own = holder.headers if holder else HOUSE
    return await broker.client.post(
        CREATE, json={"prompt": "a fox", **fields}, headers={**own, **fields.pop("headers", {})}
    )


@asynccontextmanager
async def open_house(folder: Path, **settings: Any) -> AsyncIterator[ApiBroker]:
    async with open_api(folder, clock=ManualClock(NOON), api_keys=(SecretStr(HOUSE_KEY),), **settings) as broker:
        yield broker


async def test_refusal_says_which_quota_what_is_left_and_when_it_resets(tmp_path: Path) -> None:
    async with open_house(tmp_path, user_daily_images=4) as broker:
        ann = await add_key_holder(broker.services)
        first = await order_as(broker, ann, numberOfImages=3, headers={"Idempotency-Key": "one"})
        assert first.status_code == 202
        refused = await order_as(broker, ann, numberOfImages=2)
        reset = "2024-10-05T00:00:00.000Z"
        assert (refused.status_code, refused.headers["retry-after"]) == (429, str(SECONDS_PER_DAY // 2))
        assert refused.json() == {
            "success": False,
            "error": f"This needs 2, and 1 of your quota of 4 images per day are left. It resets at {reset}.",
            "code": "quota_exceeded",
            "retryable": True,
            "quota": {"name": "images", "limit": 4, "used": 3, "left": 1, "resetsAt": reset},
        }
        dry = await order_as(broker, ann, numberOfImages=2, dryRun=True, headers={"accept-language": "ru"})
        assert (dry.status_code, dry.json()["error"].startswith("Дневного лимита")) == (429, True)
        too_many = await order_as(broker, ann, numberOfImages=5)
        assert (too_many.status_code, too_many.json()["retryable"]) == (429, False)
        assert "more than your whole quota of 4 images per day: order fewer images." in too_many.json()["error"]
        assert "retry-after" not in too_many.headers
        again = await order_as(broker, ann, numberOfImages=3, headers={"Idempotency-Key": "one"})
        assert again.json()["taskId"] == first.json()["taskId"]
        assert (await order_as(broker, ann)).status_code == 202
        other = await broker.client.post("/generate", json={"prompt": "a fox"}, headers=ann.headers)
        assert (other.status_code, "0 of your quota of 4 images per day are left" in other.text) == (429, True)
        assert (await order_as(broker, None, numberOfImages=6)).status_code == 202, "the operator has no quota"


async def test_limits_of_a_user_replace_the_defaults_at_once(tmp_path: Path) -> None:
    """0 is none at all; a limit below what is used leaves nothing, not less; another one leaves what it is above."""
    async with open_house(tmp_path, user_daily_images=2, user_in_flight=0, user_bytes=10**6) as broker:
        services = broker.services
        ann, key = await add_key_holder(services), await add_key_holder(services, name="a key", is_user=False)
        for holder in (ann, key):
            refused = await order_as(broker, holder)
            assert (refused.status_code, refused.json()["quota"]["name"]) == (429, "in_flight")
            assert refused.json()["error"] == (
                "Your quota is 0 images in work at the same time: ask the operator for more."
            )
        limits = {"images": "unlimited", "inFlight": "unlimited", "usd": 1.5, "pins": 7}
        changed = await broker.client.patch(f"/api/users/{ann.owner}", json={"quota": limits}, headers=HOUSE)
        assert changed.status_code == 200
        assert (await order_as(broker, ann, numberOfImages=3)).status_code == 202
        state = {
            name: (one.limit, one.used, one.left) for name, one in (await services.quotas.read_state(ann.owner)).items()
        }
        assert state == {
            "images": (None, 3, None),
            "usd": (1.5, 0.06, 1.44),
            "in_flight": (None, 3, None),
            "pins": (7, 0, 7),
            "bytes": (10**6, 0, 10**6),
        }
        me = (await broker.client.get("/api/me", headers=ann.headers)).json()["data"]
        assert me["user"]["quota"] == {"images": "unlimited", "usd": 1.5, "inFlight": "unlimited", "pins": 7}
        assert me["quota"]["usd"] == {
            "limit": 1.5, "used": 0.06, "left": 1.44, "resetsAt": "2024-10-05T00:00:00.000Z"
        }  # fmt: skip
        assert (await broker.client.get("/api/me", headers=key.headers)).json()["data"]["quota"]["images"]["left"] == 2
        assert (await broker.client.get("/api/me", headers=HOUSE)).json()["data"]["quota"] == {}
        await set_quota(services, ann, images=2, in_flight=9)
        lowered = (await services.quotas.read_state(ann.owner))["images"]
        assert (lowered.limit, lowered.used, lowered.left) == (2, 3, 0)
        refused = await order_as(broker, ann)
        assert refused.json()["quota"] == {**refused.json()["quota"], "name": "images", "used": 3, "left": 0}
        await set_quota(services, ann, images=4, in_flight=9)
        assert [(await order_as(broker, ann)).status_code for _ in range(2)] == [202, 429]
        await set_quota(services, ann, images=0, in_flight=9)
        assert "Your quota is 0 images per day" in (await order_as(broker, ann)).json()["error"]


async def test_quota_of_usd_counts_what_orders_can_cost(tmp_path: Path) -> None:
    async with open_house(tmp_path, user_daily_budget=0.05) as broker:
        ann = await add_key_holder(broker.services)
        unknown = await order_as(broker, ann, model="nano-banana-2-lite")
        assert (unknown.status_code, unknown.json()["code"]) == (429, "quota_exceeded")
        assert "The price of this order is not known" in unknown.json()["error"]
        assert [(await order_as(broker, ann)).status_code for _ in range(3)] == [202, 202, 429]
        refused = await order_as(broker, ann)
        assert refused.json()["error"].startswith(
            "This needs 0.02, and 0.01 of your quota of 0.05 USD per day are left."
        )
        assert (await order_as(broker, None, model="nano-banana-2-lite")).status_code == 202


async def test_retry_of_a_failed_task_counts_like_a_new_order(tmp_path: Path) -> None:
    """A canceled task that no provider has received gives everything back before."""
    async with open_house(tmp_path, user_daily_images=1, user_in_flight=1) as broker:
        ann = await add_key_holder(broker.services)
        retry, canceled = "/api/task/{}/retry", []
        for _ in range(2):
            task_id = (await order_as(broker, ann)).json()["taskId"]
            await broker.wait_until_queued(task_id)
            assert (await broker.client.delete(f"/api/task/{task_id}", headers=ann.headers)).status_code == 200
            canceled.append(task_id)
            assert await used(broker.services, ann.owner) == (0, 0)
        retries = [await broker.client.post(retry.format(one), headers=ann.headers) for one in (*canceled, canceled[0])]
        assert [one.status_code for one in retries] == [202, 429, 202]
        assert retries[0].json()["taskId"] == retries[2].json()["taskId"], "the same retry, counted once"
        assert await used(broker.services, ann.owner) == (1, round(PRICE * 1e6))


async def test_order_needs_room_for_its_references(tmp_path: Path) -> None:
    """Files count, too; so do references of finished orders, until they are deleted with their tasks."""
    async with open_house(tmp_path, user_bytes=3 * MIN_STORED_BYTES) as broker:
        services = broker.services
        ann = await add_key_holder(services)
        uri = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
        first = await order_as(broker, ann, images=[uri])
        file = await services.files.store(ann.owner, as_chunks(png("red")), FileDetails())
        refused = await order_as(broker, ann, images=[uri, uri])
        assert (refused.status_code, refused.json()["quota"]["left"]) == (429, MIN_STORED_BYTES)
        assert (
            "8,192, and 4,096 of your quota of 12,288 stored bytes are left. Delete images" in refused.json()["error"]
        )
        assert "retry-after" not in refused.headers
        assert len(await services.blobs.list_owners(-60.0)) == 2, "the references of a refused order are deleted"
        assert (await order_as(broker, ann, images=[uri])).status_code == 202
        full = await order_as(broker, ann)
        assert (full.status_code, full.json()["quota"]["left"]) == (429, 0)
        await services.files.delete(ann.owner, file.id)
        assert (await order_as(broker, ann)).status_code == 202
        for _ in range(2):  # canceled, then deleted
            await broker.client.delete(f"/api/task/{first.json()['taskId']}", headers=ann.headers)
        while (await services.quotas.read_state(ann.owner))["bytes"].used != MIN_STORED_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the worker deletes the references


async def as_chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_uploads_need_room_part_by_part(brokers: tuple[Services, Services]) -> None:
    """A finished upload counts as its file alone, so one that fills the quota can be finished."""
    files = brokers[0].files
    data = encoded("PNG", picture(80, 60))
    half = len(data) // 2
    ann = await add_key_holder(brokers[0], bytes=MIN_STORED_BYTES + len(data))
    with pytest.raises(QuotaExceeded):
        await files.begin_upload(ann.owner, FileDetails(), 2 * len(data) + MIN_STORED_BYTES)
    bob = await add_key_holder(brokers[0], name="bob", bytes=MIN_STORED_BYTES)
    upload = await files.begin_upload(bob.owner, FileDetails(), None)
    assert await refused_quota(files.append_part(upload, 0, as_chunks(bytes(MIN_STORED_BYTES + 1)))) == "bytes"
    assert await brokers[0].blobs.list_owners(-60.0) == [], "a refused part is not stored"
    first = await files.store(ann.owner, as_chunks(png()), FileDetails())
    upload = await files.begin_upload(ann.owner, FileDetails(), len(data))
    upload = await files.append_part(upload, 0, as_chunks(data[:half]))
    with pytest.raises(QuotaExceeded):
        await files.store(ann.owner, as_chunks(data), FileDetails())
    upload = await files.append_part(upload, half, as_chunks(data[half:]))
    file = await files.finish_upload(upload, len(data), as_chunks(b""))
    state = (await brokers[1].quotas.read_state(ann.owner))["bytes"]
    assert (state.used, state.left) == (MIN_STORED_BYTES + len(data), 0)
    for refused in (
        files.store(ann.owner, as_chunks(png()), FileDetails()),
        files.begin_upload(ann.owner, FileDetails(), 1),
    ):
        with pytest.raises(QuotaExceeded):
            await refused
    assert await files.finish_upload(upload, len(data), as_chunks(b"")) == file, "a lost answer is given again"
    await files.delete(ann.owner, file.id)
    await set_quota(brokers[0], ann, bytes=3 * MIN_STORED_BYTES)
    storing = [refused_quota(brokers[n % 2].files.store(ann.owner, as_chunks(png()), FileDetails())) for n in range(8)]
    assert sorted(map(str, await asyncio.gather(*storing))) == ["None"] * 2 + ["bytes"] * 6
    assert await files.list_newest(ann.owner, before=None, limit=9) != [first]
    assert len(await brokers[0].blobs.list_owners(-60.0)) == 3, "nothing of a refused file is left"
