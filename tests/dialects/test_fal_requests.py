"""The webhook of a fal request for several images: one, with all of them, however they end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from broker.clock import SystemClock
from broker.orders import ImageParams, OrderRequest
from broker.sandbox.engine import Options
from broker.services import Services
from storage.deliveries import Delivery
from storage.sql.scope import EVERYTHING
from tests.support.brokers import create_tasks, open_broker, still
from tests.support.servers import postgres as servers
from tests.support.servers.receiver import receiving

pytestmark = pytest.mark.anyio

ORIGIN = {"dialect": "fal", "webhook_format": "fal", "base": "https://broker.example.com"}


async def test_images_of_one_request_are_in_one_webhook(tmp_path: Path) -> None:
    async with receiving() as receiver, open_broker(tmp_path, callback_allow=("127.0.0.1",)) as broker:
        body = {"prompt": "a red fox", "num_images": 3}
        path, query = "/fal/fal-ai/nano-banana", {"fal_webhook": receiver.url}
        ticket = (await broker.client.post(path, json=body, params=query)).json()
        (message,) = await receiver.wait_received(1)
        assert message.document["payload"] == (await broker.client.get(ticket["response_url"])).json()
        assert len(message.document["payload"]["images"]) == 3
        assert message.headers["x-fal-webhook-request-id"] == message.document["request_id"] == ticket["request_id"]
        assert len((await broker.client.get("/api/deliveries")).json()["data"]) == 1


async def written(services: Services) -> list[Delivery]:
    return await services.tables.deliveries.list_newest(limit=20)


async def end_together(services: Services) -> None:
    """End all images of a request at the same time; check that there is one webhook, and not before the last end."""
    request = OrderRequest(
        params=ImageParams(prompt="a red fox"), count=4, origin=ORIGIN, callback_url="https://example.com/hook"
    )
    tasks = await create_tasks(services, request)
    before = len(await written(services))
    await services.canceler.cancel_task(tasks[0].id, EVERYTHING)
    assert len(await written(services)) == before
    await asyncio.gather(*(services.canceler.cancel_task(task.id, EVERYTHING) for task in tasks[1:]))
    events = await written(services)
    assert len(events) == before + 1
    body: dict[str, Any] = json.loads(events[0].body)
    assert (body["request_id"], body["status"]) == (tasks[0].id, "ERROR")
    assert body["payload"]["detail"][0]["type"] == "client_cancelled"


async def test_images_that_end_together_have_one_webhook(tmp_path: Path) -> None:
    async with still(tmp_path, SystemClock(), callback_allow=("example.com",)) as services:
        for _ in range(3):
            await end_together(services)


@pytest.mark.parametrize("is_last_deleted", [False, True])
async def test_deleted_image_does_not_stop_the_others(tmp_path: Path, is_last_deleted: bool) -> None:
    """The webhook at the end tells what is left of the request."""
    request = OrderRequest(
        params=ImageParams(prompt="a red fox"), count=2, origin=ORIGIN, callback_url="https://example.com/hook"
    )
    async with still(tmp_path, SystemClock(), callback_allow=("example.com",)) as services:
        tasks = await create_tasks(services, request)
        deleted, other = reversed(tasks) if is_last_deleted else tasks
        await services.canceler.cancel_task(deleted.id, EVERYTHING)
        await services.deleter.delete_task(deleted.id, EVERYTHING)
        assert (await services.canceler.cancel_task(other.id, EVERYTHING)).status == "canceled"
        (event,) = await written(services)
        body = json.loads(event.body)
        assert (body["request_id"], body["payload"]["detail"][0]["type"]) == (tasks[0].id, "client_cancelled")


async def test_images_that_end_together_have_one_webhook_on_postgres(
    tmp_path: Path, postgres: servers.Postgres
) -> None:
    """There the ends are transactions at the same time."""
    url = await postgres.fresh()
    async with still(tmp_path, SystemClock(), callback_allow=("example.com",), database_url=url) as services:
        for _ in range(10):
            await end_together(services)


async def test_task_of_another_dialect_is_canceled_alone(tmp_path: Path) -> None:
    """Those of its batch are orders of their own, which a client of fal knows nothing of."""
    options = Options(duration=60, creates_per_window=10_000)
    async with open_broker(tmp_path, options=options, task_deadline=90) as broker:
        order = {"prompt": "a red fox", "numberOfImages": 2}
        one, other = (await broker.client.post("/api/generate/image", json=order)).json()["taskIds"]
        canceled = await broker.client.put(f"/fal/fal-ai/nano-banana/requests/{one}/cancel")
        assert canceled.status_code == 202, canceled.text
        assert [(await broker.get_task(task))["status"] == "canceled" for task in (one, other)] == [True, False]
