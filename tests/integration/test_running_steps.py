"""Steps of one process: how they end."""

from __future__ import annotations

import asyncio
import gc
import warnings
from pathlib import Path

import pytest

from broker.metrics import Metrics
from broker.tasks.running import RunningSteps
from storage.sql.sqlite import SqliteDatabase
from storage.tasks import Tasks


@pytest.mark.anyio
async def test_step_that_is_cancelled_before_it_begins_leaves_no_coroutine(tmp_path: Path) -> None:
    async def work() -> None:
        raise AssertionError("it has not begun")

    async with SqliteDatabase(tmp_path / "broker.db") as database:
        running = RunningSteps(tasks=Tasks(database), metrics=Metrics())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            running.start(work(), "x")
            await running.cancel_all(held_too=True)
            await asyncio.sleep(0)
            gc.collect()
        assert [str(one.message) for one in caught if "never awaited" in str(one.message)] == []
