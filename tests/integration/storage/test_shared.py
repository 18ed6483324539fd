"""What the processes of one database know together: each chore has one taker, each fact one value."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.cluster_state import Facts
from storage.periodic_jobs import Chores
from storage.sql.migrate import upgrade
from tests.contracts.databases import DATABASES

pytestmark = pytest.mark.anyio

NOW = 1_000.0


@pytest.fixture(params=DATABASES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with await DATABASES[request.param](request, tmp_path) as opened:
        await upgrade(opened, NOW)
        yield opened


async def test_of_many_who_ask_one_gets_the_chore(database: Any) -> None:
    chores = Chores(database)
    took = await asyncio.gather(*(chores.take("sweep", now=NOW, every=60) for _ in range(10)))
    assert sum(took) == 1
    assert not await chores.take("sweep", now=NOW + 59, every=60)
    assert await chores.take("other", now=NOW + 59, every=60)
    assert await chores.take("sweep", now=NOW + 60, every=60)


async def test_a_clock_that_was_set_back_does_not_put_a_chore_off(database: Any) -> None:
    chores = Chores(database)
    assert await chores.take("sweep", now=NOW + 86_400, every=60)
    assert await chores.take("sweep", now=NOW, every=60)


async def test_the_first_value_holds_until_it_is_replaced(database: Any) -> None:
    facts = Facts(database)
    heard = await asyncio.gather(*(facts.agree("secret", f"value {n}") for n in range(10)))
    assert len(set(heard)) == 1
    await facts.replace("secret", "another")
    assert await facts.agree("secret", "a third") == "another"


async def test_what_is_told_replaces_what_was_known(database: Any) -> None:
    facts = Facts(database)
    assert await facts.get("credits") is None
    for value in ("12", "11"):
        await facts.tell("credits", value)
        assert await facts.get("credits") == value
