"""Clients that wait: no reads while nothing changes, and no change without a notification that is missed."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from broker.tasks.waiting.watcher import TaskWatcher
from tests.support.api import open_api

pytestmark = pytest.mark.anyio

END = "UPDATE tasks SET state = 'failed', ended_at = 5, version = version + 1"
WATCH_SECONDS = 0.02


async def test_many_waiters_read_their_task_once_each_and_the_end_once_each(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task()
        polls = [asyncio.create_task(broker.client.get(f"/api/task/{task.id}?wait=20")) for _ in range(20)]
        while broker.waiters < len(polls):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        broker.listeners.reads_of(task.id)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert broker.listeners.reads_of(task.id) == 0
        await broker.services.database.execute(END)  # without a notification
        async with asyncio.timeout(1):  # before the watcher looks
            answers = await asyncio.gather(*polls)
        assert {answer.json()["data"]["status"] for answer in answers} == {"failed"}


@pytest.mark.parametrize("names_changes", [True, False], ids=["SQLite", "as on Postgres"])
async def test_change_without_a_notification_is_found_by_one_read_for_all(tmp_path: Path, names_changes: bool) -> None:
    async with open_api(tmp_path) as broker:
        services = broker.services
        tasks = [await broker.add_task(number=number) for number in range(1, 31)]
        changes = services.task_changes if names_changes else None
        watcher = TaskWatcher(database=services.database, changes=changes, seconds=WATCH_SECONDS)

        async def wait(task_id: str, version: int) -> None:
            with watcher.watch(task_id) as watch:
                watch.version = version
                await watch.changed.wait()

        waiting = [asyncio.create_task(wait(task.id, task.version)) for task in tasks]
        await asyncio.sleep(0)
        with closing(sqlite3.connect(tmp_path / "broker.db", isolation_level=None)) as other:
            other.execute(END)  # as another process
        broker.listeners.reads.clear()
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting)
        assert broker.listeners.reads_of(tasks[0].id) == 1
