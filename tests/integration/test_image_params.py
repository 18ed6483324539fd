"""Parameters of an image: one that only a dialect and the catalog know passes through everything between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.catalog import Wire
from broker.orders import ImageParams, Order, OrderRequest
from broker.providers.registry import load_catalog
from storage.tasks import Task
from tests.support.api import a_task
from tests.support.brokers import create_tasks, still
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

PARAMS = ImageParams(
    prompt="a fox", model="nano-banana", aspect_ratio="16:9", output_format="png", seed=7, extra={"guidance": 7.5}
)


def test_columns_of_a_task_hold_every_parameter() -> None:
    task: Task = a_task(0.0, **PARAMS.to_columns())
    assert ImageParams.from_columns(vars(task)) == PARAMS


async def test_new_parameter_reaches_the_provider_through_the_database(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        (task,) = await create_tasks(services, OrderRequest(params=PARAMS))
        stored = await services.tables.tasks.get(task.id)
        assert stored is not None
        order = await services.worker.steps.submit.orders.build_order(stored, keeps_history=False)
    assert order.params == PARAMS
    assert Wire(extra={"guidance": "guidance_scale"}).spell(order, ()) == {"prompt": "a fox", "guidance_scale": 7.5}


def test_parameter_without_a_field_at_the_provider_is_ignored() -> None:
    assert "guidance" in load_catalog().ignored("kie", Order(params=PARAMS, mode="text-to-image"))
