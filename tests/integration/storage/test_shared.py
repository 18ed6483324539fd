"""What the processes of one database know together: each chore has one taker, each fact one value."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.cluster_state import ClusterState, PeriodicJobs
from storage.sql.migrate import upgrade_schema
from tests.contracts.databases import DATABASES

pytestmark = pytest.mark.anyio

NOW = 1_000.0


@pytest.fixture(params=DATABASES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with await DATABASES[request.param](request, tmp_path) as opened:
        await upgrade_schema(opened, NOW)
        yield opened


async def test_of_many_who_ask_one_gets_the_chore(database: Any) -> None:
    chores = PeriodicJobs(database)
    took = await asyncio.gather(*(chores.try_acquire("sweep", now=NOW, every=60) for _ in range(10)))
    assert sum(took) == 1
    assert not await chores.try_acquire("sweep", now=NOW + 59, every=60)
    assert await chores.try_acquire("other", now=NOW + 59, every=60)
    assert await chores.try_acquire("sweep", now=NOW + 60, every=60)


async def test_a_clock_that_was_set_back_does_not_put_a_chore_off(database: Any) -> None:
    chores = PeriodicJobs(database)
    assert await chores.try_acquire("sweep", now=NOW + 86_400, every=60)
    assert await chores.try_acquire("sweep", now=NOW, every=60)


async def test_the_first_value_holds_until_it_is_replaced(database: Any) -> None:
    facts = ClusterState(database)
    heard = await asyncio.gather(*(facts.set_if_absent("secret", f"value {n}") for n in range(10)))
    assert len(set(heard)) == 1
    await facts.set_value("secret", "another")
    assert await facts.set_if_absent("secret", "a third") == "another"


async def test_what_is_told_replaces_what_was_known(database: Any) -> None:
    facts = ClusterState(database)
    assert await facts.get_value("credits") is None
    for value in ("12", "11"):
        await facts.set_value("credits", value)
        assert await facts.get_value("credits") == value
