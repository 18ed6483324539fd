"""Webhooks of whole journeys over real HTTP, verified with the official library."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.support.brokers import RunningBroker, open_broker
from tests.support.faulty_http import answers
from tests.support.servers.receiver import Receiver, receiving
from webhooks.signatures.standard import derived_key, write_secret

pytestmark = pytest.mark.anyio

SECRET = "a-secret-of-the-tests-0123456789"


@asynccontextmanager
async def a_broker(folder: Path, **settings: Any) -> AsyncIterator[tuple[RunningBroker, Receiver]]:
    async with receiving() as receiver:
        chosen = {"secret_key": SECRET, "callback_allow": (receiver.host,), **settings}
        async with open_broker(folder, **chosen) as broker:
            yield broker, receiver


async def next_event(receiver: Receiver, count: int = 1) -> dict[str, Any]:
    """The last of so many webhooks, as the official library reads it."""
    message = (await receiver.wait_received(count))[-1]
    webhook = Webhook(write_secret(derived_key(SECRET.encode())))
    document: dict[str, Any] = webhook.verify(message.body, dict(message.headers))
    return document


async def test_completed_task_is_delivered_with_its_images(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as (broker, receiver):
        task_id = await broker.create_task("a red bicycle", callbackUrl=receiver.url)
        document = await next_event(receiver)
        assert document["type"] == "task.completed"
        assert document["data"] == await broker.get_task(task_id)
        image = await broker.client.get(document["data"]["result"])
        assert (image.status_code, len(image.content)) == (200, document["data"]["results"][0]["bytes"])


async def test_failed_task_is_delivered_with_its_reason(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as (broker, receiver):
        task_id = await broker.create_task("a red bicycle [mood:flagged]", callback_url=receiver.url)
        document = await next_event(receiver)
        assert document["type"] == "task.failed"
        assert document["data"]["errorDetail"]["code"] == "safety_input"
        assert document["data"] == await broker.get_task(task_id)


async def test_canceled_task_is_delivered(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as (broker, receiver):
        task_id = await broker.create_task("a red bicycle [mood:slow:60]", callbackUrl=receiver.url)
        assert (await broker.client.delete(f"/api/task/{task_id}")).status_code == 200
        document = await next_event(receiver)
        assert (document["type"], document["data"]["id"]) == ("task.canceled", task_id)


async def test_late_success_is_delivered_after_the_failure(tmp_path: Path) -> None:
    async with a_broker(tmp_path, task_deadline=0.5) as (broker, receiver):
        task_id = await broker.create_task("a red bicycle [mood:slow:1.5]", callbackUrl=receiver.url)
        assert (await next_event(receiver))["data"]["errorDetail"]["code"] == "deadline_exceeded"
        document = await next_event(receiver, 2)
        assert receiver.types == ["task.failed", "task.completed"]
        assert document["data"] == await broker.get_task(task_id)
        assert len({message.id for message in receiver.received}) == 2


async def test_every_image_of_a_batch_is_delivered(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as (broker, receiver):
        order = {"prompt": "a red bicycle", "numberOfImages": 4, "callbackUrl": receiver.url}
        ids = (await broker.client.post("/api/generate/image", json=order)).json()["taskIds"]
        await next_event(receiver, 4)
        assert sorted(message.document["data"]["id"] for message in receiver.received) == sorted(ids)


async def test_a_form_can_name_it_too(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as (broker, receiver):
        form = {"prompt": (None, "a red bicycle"), "callbackUrl": (None, receiver.url)}
        answer = await broker.client.post("/api/generate/image", files=form)
        assert answer.status_code == 202
        assert (await next_event(receiver))["data"]["id"] == answer.json()["taskId"]


async def test_failed_delivery_is_listed_and_can_be_replayed(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as (broker, receiver):
        receiver.script = answers("410 Gone")
        task_id = await broker.create_task("a red bicycle", callbackUrl=receiver.url)
        await next_event(receiver)
        (listed,) = await _listed_as(broker, "gone")
        assert (listed["taskId"], listed["attempts"], listed["lastStatus"]) == (task_id, 1, 410)
        receiver.script = answers("200 OK")
        answer = await broker.client.post(f"/api/deliveries/{listed['id']}/replay")
        assert (answer.status_code, answer.json()["data"]["id"]) == (202, listed["id"])
        await next_event(receiver, 2)
        (again,) = await _listed_as(broker, "delivered")
        assert (again["attempts"], again["reason"], again["nextAt"]) == (2, None, None)
        assert receiver.received[0].id == receiver.received[1].id == listed["id"]
        one = (await broker.client.get(f"/api/deliveries/{listed['id']}")).json()["data"]
        assert [tried["status"] for tried in one["attemptLog"]] == [410, 200]
        assert one["body"] == receiver.received[1].document


async def _listed_as(broker: RunningBroker, outcome: str) -> list[dict[str, Any]]:
    """As soon as there is one."""
    while True:
        answer = await broker.client.get("/api/deliveries", params={"outcome": outcome})
        deliveries: list[dict[str, Any]] = answer.json()["data"]
        if deliveries:
            return deliveries


async def test_deliveries_are_counted_by_outcome(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as (broker, receiver):
        receiver.script = answers("500 Internal Server Error")
        await broker.create_task("a red bicycle", callbackUrl=receiver.url)
        while not (waiting := (await _listed_as(broker, "pending"))[0])["attempts"]:
            pass
        page = (await broker.client.get("/metrics")).text
        assert 'broker_deliveries_total{outcome="refused",type="task.completed"} 1.0' in page
        assert "broker_deliveries_pending 1.0" in page
        receiver.script = answers("200 OK")
        await broker.client.post(f"/api/deliveries/{waiting['id']}/replay")
        await _listed_as(broker, "delivered")
        page = (await broker.client.get("/metrics")).text
        assert 'broker_deliveries_total{outcome="delivered",type="task.completed"} 1.0' in page
        assert "broker_delivery_seconds_count 1.0" in page
