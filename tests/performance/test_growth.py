"""What must not grow with the number of stored tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from storage.states import TaskState
from tests.support.api import a_task
from tests.support.brokers import still
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio


async def test_metrics_count_tasks_of_a_state_up_to_a_number(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        states = [TaskState.SUCCEEDED] * 7 + [TaskState.WAITING] * 6 + [TaskState.FAILED] * 2
        tasks = [a_task(clock.now(), number=number, state=state) for number, state in enumerate(states)]
        await services.database.transact(*map(services.tables.tasks.insert_task, tasks))
        page = (await replace(services.collector, max_counted=5).render_page()).decode()
    for state, count in (("succeeded", 5), ("waiting", 5), ("failed", 2), ("queued", 0)):
        assert f'broker_tasks{{state="{state}"}} {count}.0' in page
