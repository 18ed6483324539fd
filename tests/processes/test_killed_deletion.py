"""kill -9 in the middle of the deletion of an account, then a restart: the deletion is finished."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.bootstrap import database_for, load_settings
from storage.ids import DELETED_OWNER, new_task_id
from storage.states import TaskState
from tests.privacy.canaries import add_user
from tests.support.api import a_task, open_api
from tests.support.process import environment, free_port, serving, until
from tests.support.servers.postgres import Postgres

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

KEY = "key-of-the-operator-0123456789"
HEADERS = {"Authorization": f"Bearer {KEY}"}
TASKS = 2000


async def plant_tasks(folder: Path, **settings: Any) -> str:
    """Store a user with many tasks, half of them in the queue; return the user's id."""
    async with open_api(folder, **settings) as broker:
        user, now = await add_user(broker, "ada"), broker.services.clock.now()
        states = [(TaskState.QUEUED, None), (TaskState.SUCCEEDED, now)]
        tasks = [
            a_task(now, id=new_task_id(now), caller=user.id, state=state, ended_at=ended_at)
            for _ in range(TASKS // 2)
            for state, ended_at in states
        ]
        await broker.services.database.transact(*(broker.services.tables.tasks.insert_task(task) for task in tasks))
    return user.id


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_killed_deletion_is_finished_after_the_restart(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    chosen: dict[str, str] = {}
    if kind == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        chosen = {"DATABASE_URL": await server.fresh(), "SECRET_KEY": "planted-secret-of-the-broker"}
    settings: dict[str, Any] = {name.lower(): value for name, value in chosen.items()}
    owner = await plant_tasks(tmp_path / "data", **settings)
    env = environment(tmp_path, "http://127.0.0.1:9", free_port(), BROKER_API_KEYS=KEY, **chosen)
    read = load_settings(env_file=None, data_dir=tmp_path / "data", **settings)

    async def count(which: str) -> int:
        async with database_for(read) as database:
            (row,) = await database.fetch(f"SELECT count(*) AS n FROM tasks WHERE {which}")
        return int(row["n"])

    async with serving(env, tmp_path) as broker:
        deleting = asyncio.create_task(broker.client.delete(f"/api/users/{owner}", headers=HEADERS))
        await until(lambda: count(f"caller = '{DELETED_OWNER}'"))
        await broker.kill()
        with suppress(httpx.HTTPError):
            await deleting
    assert 0 < await count(f"caller = '{owner}'") < TASKS, "it was killed in the middle"
    async with serving(env, tmp_path) as broker:
        assert (await broker.client.get(f"/api/users/{owner}", headers=HEADERS)).status_code == 404

        async def is_finished() -> bool:
            return await count(f"caller = '{owner}'") == 0

        await until(is_finished)
    assert await count(f"caller = '{DELETED_OWNER}' AND state = 'expired' AND prompt = ''") == TASKS
