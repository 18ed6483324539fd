"""State shared by the processes of one database: periodic jobs and values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.cluster_state import ClusterState, PeriodicJobs
from storage.errors import Stale
from storage.limits.rate_limits import RateLimits
from storage.sql.migrate import upgrade_schema
from tests.contracts.databases import DATABASES

pytestmark = pytest.mark.anyio

NOW = 1_000.0


@pytest.fixture(params=DATABASES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with await DATABASES[request.param](request, tmp_path) as opened:
        await upgrade_schema(opened, NOW)
        yield opened


async def test_one_of_many_processes_acquires_a_periodic_job(database: Any) -> None:
    jobs = PeriodicJobs(database)
    acquired = await asyncio.gather(*(jobs.try_acquire("sweep", now=NOW, every=60) for _ in range(10)))
    assert sum(acquired) == 1
    assert not await jobs.try_acquire("sweep", now=NOW + 59, every=60)
    assert await jobs.try_acquire("other", now=NOW + 59, every=60)
    assert await jobs.try_acquire("sweep", now=NOW + 60, every=60)


async def test_clock_set_back_does_not_delay_a_periodic_job(database: Any) -> None:
    jobs = PeriodicJobs(database)
    assert await jobs.try_acquire("sweep", now=NOW + 86_400, every=60)
    assert await jobs.try_acquire("sweep", now=NOW, every=60)


async def test_rate_limit_holds_over_concurrent_orders_and_a_clock_set_back(database: Any) -> None:
    limits = RateLimits(database)

    async def is_allowed(count: int, now: float) -> bool:
        try:
            await database.transact(limits.add_usage("caller", count, limit=5, now=now))
        except Stale:
            return False
        return True

    assert sum(await asyncio.gather(*(is_allowed(1, NOW) for _ in range(10)))) == 5
    assert not await is_allowed(1, NOW + 59)
    assert await is_allowed(5, NOW + 60)
    assert await is_allowed(5, NOW)


async def test_first_value_stays_until_it_is_replaced(database: Any) -> None:
    state = ClusterState(database)
    values = await asyncio.gather(*(state.set_if_absent("secret", f"value {n}") for n in range(10)))
    assert len(set(values)) == 1
    await state.set_value("secret", "another")
    assert await state.set_if_absent("secret", "a third") == "another"


async def test_set_value_replaces_the_value(database: Any) -> None:
    state = ClusterState(database)
    assert await state.get_value("credits") is None
    for value in ("12", "11"):
        await state.set_value("credits", value)
        assert await state.get_value("credits") == value
