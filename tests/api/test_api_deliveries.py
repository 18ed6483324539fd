"""The delivery log over HTTP: pages, filters, and secrets that it does not show."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.net.fetcher import Fetcher
from storage.deliveries import Delivery, DeliveryStatus
from tests.support.api import ApiBroker, a_task, open_api
from tests.support.log_lines import captured_lines

pytestmark = pytest.mark.anyio

NOW = 1_790_000_000.0
KEYS = {
    *("id", "taskId", "owner", "withheld", "type", "url", "outcome", "attempts"),
    *("lastStatus", "reason", "createdAt", "nextAt", "deliveredAt"),
}


async def add(broker: ApiBroker, number: int, **changes: Any) -> Delivery:
    """Insert a delivery that no process will send."""
    more = {"created_at": NOW + number // 3, "ended_at": 9e9, **changes}
    return await broker.add_delivery(a_task(NOW, number=number), **more)


async def test_pages_list_every_delivery_once_newest_first(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        added = [await add(broker, number) for number in range(23)]
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            answer = await broker.client.get("/api/deliveries", params={"limit": "5", "cursor": cursor})
            document = answer.json()
            seen += [one["id"] for one in document["data"]]
            cursor = document["nextCursor"]
        newest = sorted(added, key=lambda one: (one.created_at, one.id), reverse=True)
        assert seen == [one.id for one in newest]


async def test_list_can_be_filtered_by_task_and_outcome(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await add(broker, 1, outcome=DeliveryStatus.FAILED)
        await add(broker, 2)
        await add(broker, 3, task_id=f"task_{1:043x}")

        async def listed(**params: str) -> list[str]:
            answer = await broker.client.get("/api/deliveries", params=params)
            return [one["id"][-1] for one in answer.json()["data"]]

        assert await listed(outcome="failed") == ["1"]
        assert await listed(outcome="delivered") == ["3", "2"]
        assert await listed(task=f"task_{1:043x}") == ["3", "1"]
        assert await listed(task=f"task_{1:043x}", outcome="delivered") == ["3"]
        assert await listed(task="task_unknown") == []


async def test_list_shows_neither_the_body_nor_the_secret_of_the_url(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        delivery = await add(broker, 1, last_status=500, reason="HTTP 500", attempts=3)
        answer = await broker.client.get("/api/deliveries")
        (listed,) = answer.json()["data"]
        assert set(listed) == KEYS
        one = await broker.client.get(f"/api/deliveries/{delivery.id}")
        assert set(one.json()["data"]) == KEYS | {"attemptLog", "body"}
        assert listed["url"] == "https://hooks.example.com/x"
        assert (listed["attempts"], listed["lastStatus"], listed["reason"]) == (3, 500, "HTTP 500")
        assert "of-the-receiver" not in answer.text + one.text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"outcome": "lost"}, "outcome"),
        ({"task": "a\x00b"}, "task"),
        ({"limit": "0"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": f"1790000000.0-task_{0:043x}"}, "cursor"),
    ],
)
async def test_invalid_query_names_its_field(tmp_path: Path, query: dict[str, str], field: str) -> None:
    async with open_api(tmp_path) as broker:
        answer = await broker.client.get("/api/deliveries", params=query)
        assert (answer.status_code, answer.json()["field"]) == (400, field)


@pytest.mark.parametrize("name", ["evt_" + "0" * 32, "evt_", "x", "evt_" + "G" * 32, "%00", "task_" + "0" * 43])
async def test_unknown_id_is_not_found(tmp_path: Path, name: str) -> None:
    async with open_api(tmp_path) as broker:
        for method, path in (("GET", f"/api/deliveries/{name}"), ("POST", f"/api/deliveries/{name}/replay")):
            answer = await broker.client.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_callback_url_is_part_of_the_order_of_an_idempotency_key(tmp_path: Path) -> None:
    """The first response is returned again, even if the URL would be rejected by now."""
    async with open_api(tmp_path, callback_allow=("receiver",)) as broker:
        order = {"prompt": "a red bicycle", "callbackUrl": "http://receiver/hook?secret=of-the-receiver"}

        async def create(**changes: str) -> Any:
            headers = {"Idempotency-Key": "k"}
            return await broker.client.post("/api/generate/image", json={**order, **changes}, headers=headers)

        first = await create()
        assert first.status_code == 202
        assert (await create(callbackUrl="http://receiver/other")).json()["code"] == "idempotency_mismatch"
        orders = broker.services.orders
        broker.mount(orders=replace(orders, planner=replace(orders.planner, caller_fetcher=Fetcher())))
        assert (await create()).json()["taskId"] == first.json()["taskId"]
        assert "of-the-receiver" not in (await broker.client.get("/api/tasks")).text


async def test_callback_url_is_not_logged(tmp_path: Path) -> None:
    with captured_lines(logging.DEBUG) as lines:
        async with open_api(tmp_path, callback_allow=("127.0.0.1:9",)) as broker:
            order = {"prompt": "a red bicycle", "callbackUrl": "http://127.0.0.1:9/hook?word=of-the-receiver"}
            task_id = (await broker.client.post("/api/generate/image", json=order)).json()["taskId"]
            assert (await broker.client.delete(f"/api/task/{task_id}")).status_code == 200
            while True:
                (listed,) = (await broker.client.get("/api/deliveries")).json()["data"]
                if listed["attempts"]:
                    break
    assert "delivery_failed" in {line["action"] for line in lines}
    assert "of-the-receiver" not in str(lines) + repr(listed)
