"""The rate limit: one count on every database and over two brokers, and a wait after which the order succeeds."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from broker.errors import ApiError
from broker.orders import DataUriReference, ImageParams, OrderRequest
from broker.services import Services
from tests.support.api import png
from tests.support.brokers import create_tasks, still
from tests.support.clock import ManualClock
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio

LIMIT = 5
FOX = OrderRequest(params=ImageParams(prompt="a fox"))
PICTURE = DataUriReference(text=f"data:image/png;base64,{base64.b64encode(png()).decode()}")


@pytest.fixture
def clock() -> ManualClock:
    """Begins now: a broker compares its clock with that of the database."""
    return ManualClock(time.time())


@pytest.fixture(params=["sqlite", "postgres"])
async def brokers(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[tuple[Services, Services]]:
    """Two brokers on one database."""
    settings: dict[str, Any] = {"rate_per_minute": LIMIT}
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        settings["database_url"] = await server.fresh()
    clock.advance(time.time() - clock.now())  # a server may take a while to start
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(still(tmp_path, clock, **settings))
        yield one, await stack.enter_async_context(still(tmp_path, clock, **settings))


async def rejected(services: Services, request: OrderRequest = FOX) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await create_tasks(services, request)
    assert caught.value.code == "rate_limited"
    return caught.value


async def test_concurrent_orders_over_two_brokers_stay_within_the_limit(brokers: tuple[Services, Services]) -> None:
    outcomes = await asyncio.gather(
        *(create_tasks(brokers[n % 2], FOX) for n in range(4 * LIMIT)), return_exceptions=True
    )
    created = [one for one in outcomes if isinstance(one, tuple)]
    errors = [one for one in outcomes if isinstance(one, ApiError)]
    assert (len(created), len(errors)) == (LIMIT, 3 * LIMIT)
    assert {error.code for error in errors} == {"rate_limited"}


async def test_order_succeeds_after_the_wait_and_not_before(
    brokers: tuple[Services, Services], clock: ManualClock
) -> None:
    await create_tasks(brokers[0], OrderRequest(params=ImageParams(prompt="two foxes"), count=2))
    clock.advance(20)
    await create_tasks(brokers[0], OrderRequest(params=ImageParams(prompt="three foxes"), count=LIMIT - 2))
    error = await rejected(brokers[1])
    assert (error.retryable, error.retry_after) == (True, 40)
    clock.advance(39.5)
    await rejected(brokers[1])
    clock.advance(0.5)
    await create_tasks(brokers[1], FOX)


async def test_limit_is_per_caller(brokers: tuple[Services, Services]) -> None:
    await create_tasks(brokers[0], OrderRequest(params=ImageParams(prompt="five foxes"), count=LIMIT))
    orders = brokers[1].orders
    await orders.create("another caller", FOX, await orders.plan("house:local", FOX))


async def test_repeated_request_is_not_counted(brokers: tuple[Services, Services]) -> None:
    same = OrderRequest(params=ImageParams(prompt="a fox"), idempotency_key="k")
    await asyncio.gather(*(create_tasks(brokers[n % 2], same) for n in range(2 * LIMIT)))
    await create_tasks(brokers[0], OrderRequest(params=ImageParams(prompt="four foxes"), count=LIMIT - 1))
    await rejected(brokers[1])


@pytest.mark.parametrize("work", [{}, {"callback_url": "http://127.0.0.1:9/"}, {"sources": (PICTURE,)}])
async def test_more_images_than_the_limit_are_never_allowed(
    brokers: tuple[Services, Services], work: dict[str, Any]
) -> None:
    """Whether or not an order has work before its transaction, and whether or not its caller has ordered before."""
    too_many = OrderRequest(params=ImageParams(prompt="six foxes"), count=LIMIT + 1, **work)
    for _ in range(2):
        error = await rejected(brokers[0], too_many)
        assert (error.retryable, error.retry_after) == (False, None)
        await create_tasks(brokers[0], FOX)


async def test_new_window_begins_after_a_minute_and_after_a_clock_was_set_back(
    brokers: tuple[Services, Services], clock: ManualClock
) -> None:
    for seconds in (0, 60, -3600):
        clock.advance(seconds)
        await create_tasks(brokers[0], OrderRequest(params=ImageParams(prompt="five foxes"), count=LIMIT))
        await rejected(brokers[1])
