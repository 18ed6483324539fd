"""An extra route is served, protected and described by its declaration alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.route import newest_dialect
from tests.examples.running import CALLER_KEY, running_broker

pytestmark = pytest.mark.anyio

KEY = {"authorization": f"Bearer {CALLER_KEY}"}


async def test_extra_route_is_served_and_protected(tmp_path: Path) -> None:
    async with running_broker(tmp_path, dialects=[newest_dialect], api_keys=(CALLER_KEY,)) as broker:
        assert (await broker.client.get("/api/newest")).json()["code"] == "unauthorized"
        assert (await broker.client.get("/api/newest", headers=KEY)).json()["code"] == "task_not_found"
        order = {"prompt": "a red fox"}
        created = (await broker.client.post("/api/generate/image", headers=KEY, json=order)).json()
        await broker.client.get(created["pollUrl"], params={"wait": "10"})
        newest = await broker.client.get("/api/newest", headers=KEY, params={"status": "completed"})
        assert newest.json() == {"id": created["taskId"], "status": "completed"}
        wrong = await broker.client.get("/api/newest", headers=KEY, params={"status": "lost"})
        assert (wrong.status_code, wrong.json()["field"]) == (400, "status")


async def test_extra_route_is_described(tmp_path: Path) -> None:
    async with running_broker(tmp_path, dialects=[newest_dialect]) as broker:
        document = (await broker.client.get("/openapi.json")).json()
    operation = document["paths"]["/api/newest"]["get"]
    assert (operation["operationId"], [one["name"] for one in operation["parameters"]]) == ("getNewest", ["status"])
    assert {"200", "400", "401", "404"} <= set(operation["responses"])
