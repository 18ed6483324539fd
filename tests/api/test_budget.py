"""The daily budget: one amount on every database and over two brokers, refused with the time of reset."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from broker.bootstrap import database_for
from broker.errors import ApiError
from broker.ordering.drafts import BatchDetails, PlannedOrder
from broker.orders import ImageParams, OrderRequest
from broker.services import Services
from broker.settings import Settings
from storage.ids import new_user_id
from storage.ledger import SECONDS_PER_DAY
from storage.limits.budgets import day_of, to_micros
from storage.sql.database import Statement
from storage.sql.scope import EVERYTHING
from tests.support.api import open_api
from tests.support.brokers import create_tasks, still
from tests.support.clock import ManualClock
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio

CREATE = "/api/generate/image"
IMAGES = 5
BUDGET = 0.02 * IMAGES
FOX = OrderRequest(params=ImageParams(prompt="a fox"))
NOON = 20_000.5 * SECONDS_PER_DAY


@pytest.fixture
def clock() -> ManualClock:
    """Begins now: a broker compares its clock with that of the database."""
    return ManualClock(time.time())


@pytest.fixture(params=["sqlite", "postgres"])
async def brokers(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[tuple[Services, Services]]:
    """Two brokers on one database."""
    settings: dict[str, Any] = {"daily_budget": BUDGET}
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        settings["database_url"] = await server.fresh()
    clock.advance(time.time() - clock.now())  # a server may take a while to start
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(still(tmp_path, clock, **settings))
        yield one, await stack.enter_async_context(still(tmp_path, clock, **settings))


async def test_batch_of_different_orders_fits_as_a_whole_or_not_at_all(brokers: tuple[Services, Services]) -> None:
    services, _ = brokers
    details = BatchDetails(dialect="gemini", name="", model="nano-banana")

    async def order_batch(images: int) -> int:
        requests = [replace(FOX, params=ImageParams(prompt=f"fox {number}")) for number in range(images)]
        orders = [PlannedOrder(request=one, plan=await services.orders.plan("house:local", one)) for one in requests]
        return len((await services.orders.create_together("house:local", orders, details)).tasks)

    with pytest.raises(ApiError) as raised:
        await order_batch(IMAGES + 1)
    assert raised.value.code == "quota_exceeded"
    assert await reserved_today(services) == 0
    assert await order_batch(IMAGES) == IMAGES
    assert await reserved_today(services) == to_micros(BUDGET)


async def reserved_today(services: Services) -> int:
    rows = await services.database.fetch("SELECT coalesce(sum(reserved), 0) AS micros FROM tasks")
    used = await services.tables.budgets.get_used(day_of(services.clock.now()))
    assert used == rows[0]["micros"]
    return used


async def test_concurrent_orders_over_two_brokers_stay_within_the_budget(brokers: tuple[Services, Services]) -> None:
    outcomes = await asyncio.gather(
        *(create_tasks(brokers[n % 2], FOX) for n in range(3 * IMAGES)), return_exceptions=True
    )
    errors = [one for one in outcomes if isinstance(one, ApiError)]
    assert (len([one for one in outcomes if isinstance(one, tuple)]), len(errors)) == (IMAGES, 2 * IMAGES)
    assert {error.code for error in errors} == {"quota_exceeded"}
    assert await reserved_today(brokers[0]) == to_micros(BUDGET)


async def test_order_that_fits_only_in_part_is_refused_and_reserves_nothing(
    brokers: tuple[Services, Services],
) -> None:
    await create_tasks(brokers[0], replace(FOX, count=4))
    with pytest.raises(ApiError, match=r"up to 0\.04 USD, and 0\.02 USD are left of the daily budget of 0\.1 USD"):
        await create_tasks(brokers[1], replace(FOX, count=2))
    assert await reserved_today(brokers[0]) == to_micros(0.08)
    await create_tasks(brokers[1], FOX)


async def test_users_do_not_see_the_amounts_of_the_budget(brokers: tuple[Services, Services]) -> None:
    services, user = brokers[0], new_user_id()
    await create_tasks(services, replace(FOX, count=4))
    for count, amounts in ((2, r"and less is left of the daily budget of this broker\."), (6, "this broker: order")):
        order = replace(FOX, count=count)
        with pytest.raises(ApiError, match=amounts):
            await services.orders.create(user, order, await services.orders.plan(user, order))


async def test_budget_of_the_next_day_is_a_new_one(brokers: tuple[Services, Services], clock: ManualClock) -> None:
    await create_tasks(brokers[0], replace(FOX, count=IMAGES))
    clock.advance(SECONDS_PER_DAY)
    await create_tasks(brokers[0], replace(FOX, count=IMAGES))


async def test_refusal_names_the_reset_and_a_repeated_order_still_gets_its_answer(tmp_path: Path) -> None:
    clock, key = ManualClock(NOON), {"Idempotency-Key": "one"}
    async with open_api(tmp_path, clock=clock, daily_budget=0.03) as broker:
        first = await broker.client.post(CREATE, json={"prompt": "a fox"}, headers=key)
        refused = await broker.client.post(CREATE, json={"prompt": "a fox"})
        assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (
            429,
            "quota_exceeded",
            True,
        )
        assert "It resets at 2024-10-05T00:00:00.000Z." in refused.json()["error"]
        assert refused.headers["retry-after"] == str(SECONDS_PER_DAY // 2)
        repeated = await broker.client.post(CREATE, json={"prompt": "a fox"}, headers=key)
        assert (repeated.status_code, repeated.json()["taskId"]) == (202, first.json()["taskId"])
        dry = await broker.client.post(CREATE, json={"prompt": "a fox", "dryRun": True})
        assert (dry.status_code, dry.json()["code"]) == (429, "quota_exceeded")


async def test_canceled_order_makes_room_for_another(tmp_path: Path) -> None:
    async with open_api(tmp_path, daily_budget=0.03) as broker:
        task_id = (await broker.client.post(CREATE, json={"prompt": "a fox"})).json()["taskId"]
        await broker.wait_until_queued(task_id)
        assert (await broker.client.delete(f"/api/task/{task_id}")).status_code == 200
        assert (await broker.client.post(CREATE, json={"prompt": "a fox"})).status_code == 202


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"model": "nano-banana-2-lite"}, "The price of this order is not known"),
        ({"numberOfImages": 6}, "more than the whole daily budget of 0.1 USD"),
    ],
    ids=["no price", "too large"],
)
async def test_order_that_no_day_can_cover_is_not_retryable(tmp_path: Path, order: Any, reason: str) -> None:
    """Also an order without a known price: it could not be counted."""
    async with open_api(tmp_path, daily_budget=BUDGET) as broker:
        refused = await broker.client.post(CREATE, json={"prompt": "a fox", **order})
        assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (
            429,
            "quota_exceeded",
            False,
        )
        assert reason in refused.json()["error"]
        assert "retry-after" not in refused.headers


async def test_nothing_is_reserved_without_a_budget(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await broker.client.post(CREATE, json={"prompt": "a fox"})
        rows = await broker.services.database.fetch("SELECT reserved FROM tasks")
        assert [row["reserved"] for row in rows] == [None]
        assert await broker.services.database.fetch("SELECT * FROM budget_days") == []


async def test_orders_and_ends_at_the_same_time_keep_the_sum(brokers: tuple[Services, Services]) -> None:
    """An order is refused for the budget only, although what is left changes between its check and its transaction."""
    tasks = await create_tasks(brokers[0], replace(FOX, count=IMAGES))

    async def cancel(number: int) -> None:
        with suppress(ApiError):  # canceled by the other broker
            await brokers[number % 2].canceler.cancel_task(tasks[number // 2].id, EVERYTHING)

    async def order(number: int) -> None:
        try:
            await create_tasks(brokers[number % 2], FOX)
        except ApiError as error:
            assert error.code == "quota_exceeded"

    await asyncio.gather(
        *(cancel(number) for number in range(2 * IMAGES)), *(order(number) for number in range(4 * IMAGES))
    )
    assert await reserved_today(brokers[0]) <= to_micros(BUDGET)


@dataclass
class Contended:
    """A database in which the budget is used up exactly while an order is written."""

    inner: Any
    is_contended: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> Any:
        if not self.is_contended:
            return await self.inner.transact(*statements, wake=wake)
        self.is_contended = False
        await self.inner.execute("INSERT INTO budget_days (day, used) VALUES (20000, 1000000000)")
        try:
            return await self.inner.transact(*statements, wake=wake)
        finally:
            await self.inner.execute("DELETE FROM budget_days")


async def test_order_is_written_when_the_budget_was_used_up_for_a_moment_only(tmp_path: Path) -> None:
    contended: list[Contended] = []

    @asynccontextmanager
    async def open_database(settings: Settings) -> AsyncIterator[Any]:
        async with database_for(settings) as database:
            contended.append(Contended(database))
            yield contended[0]

    async with still(tmp_path, ManualClock(NOON), open_database=open_database, daily_budget=BUDGET) as services:
        contended[0].is_contended = True
        assert len(await create_tasks(services, FOX)) == 1
        assert await reserved_today(services) == to_micros(0.02)
