"""The daily budget: one amount on every database and over two brokers, refused with the time of reset."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.errors import ApiError
from broker.orders import ImageParams, OrderRequest
from broker.services import Services
from storage.ledger import SECONDS_PER_DAY
from storage.limits.budgets import day_of, to_micros
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
