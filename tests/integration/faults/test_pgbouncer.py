"""A pooler in transaction mode: the broker names the setting it needs, and works with it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from storage.errors import StorageError
from storage.sql.database import Statement
from storage.sql.postgres import PostgresDatabase
from tests.integration.faults.test_postgres import ADD, BUMP, through
from tests.support.brokers import open_broker
from tests.support.servers import pgbouncer
from tests.support.servers.postgres import Postgres

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not pgbouncer.installed(), reason="pgbouncer is not installed on this machine"),
]


async def test_pooler_without_a_listen_url_is_detected(postgres: Postgres) -> None:
    url = await postgres.fresh()
    async with pgbouncer.pooling(postgres) as port, PostgresDatabase(through(port, url)) as database:
        with pytest.raises(StorageError, match="BROKER_DATABASE_LISTEN_URL"):
            await database.check()


@pytest.mark.parametrize("direct", [True, False], ids=["listening beside it", "not listening"])
async def test_many_clients_share_four_sessions(postgres: Postgres, direct: bool) -> None:
    """No prepared statement, lock or setting is left in a session for the next client."""
    url = await postgres.fresh()
    async with (
        pgbouncer.pooling(postgres) as port,
        PostgresDatabase(through(port, url), listen_url=url if direct else "none", connections=20) as database,
    ):
        await database.check()
        await database.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, n BIGINT)")

        async def life(number: int) -> None:
            adding = Statement(sql=ADD, params={"id": f"{number}"})
            bumping = Statement(sql=BUMP, params={"id": f"{number}"}, must_change=True)
            await database.transact(adding, bumping)
            row = await database.fetch_one("SELECT n FROM notes WHERE id = :id", id=f"{number}")
            assert row == {"n": 1}
            await database.execute(BUMP, id=f"{number}")

        await asyncio.gather(*(life(number) for number in range(200)))
        assert await database.fetch("SELECT DISTINCT n FROM notes") == [{"n": 2}]


async def test_orders_complete_through_a_pooler(tmp_path: Path, postgres: Postgres) -> None:
    url = await postgres.fresh()
    async with (
        pgbouncer.pooling(postgres) as port,
        open_broker(tmp_path, database_url=through(port, url), database_listen_url=url, task_deadline=30) as broker,
    ):
        ids = await asyncio.gather(*(broker.create_task(f"picture {number}") for number in range(20)))
        ends = await asyncio.gather(*(broker.wait_end(task_id) for task_id in ids))
        jobs = await broker.provider_jobs()
    assert Counter(data["status"] for data in ends) == {"completed": 20}
    assert len(jobs) == 20
