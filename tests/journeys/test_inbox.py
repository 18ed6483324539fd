"""The callback inbox over whole journeys: callbacks in time, late, lost and replayed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.attempts import Attempts
from tests.support.brokers import RunningBroker, open_broker
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgres"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RunningBroker]:
    settings: dict[str, Any] = {}
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        settings["database_url"] = await server.fresh()
    async with open_broker(tmp_path, **settings) as opened:
        yield opened


async def learned(broker: RunningBroker, task_id: str) -> list[str | None]:
    return [attempt.learned_by for attempt in await Attempts(broker.services.database).list_of_task(task_id)]


async def count_missing(broker: RunningBroker) -> dict[str, int]:
    """Count over all ended jobs; the product leaves out the last minute, in which callbacks may still arrive."""
    now = broker.services.clock.now()
    return await broker.services.tables.callbacks.count_missing(since=0, until=now + 60, limit=100)


async def missing_metric(broker: RunningBroker) -> float:
    page = (await broker.client.get("/metrics")).text
    lines = [line for line in page.splitlines() if line.startswith('broker_callbacks_missing_total{provider="kie"}')]
    return float(lines[0].split()[-1]) if lines else 0.0


async def inbox(broker: RunningBroker, task_id: str, number: int) -> list[dict[str, Any]]:
    """Return the callbacks of the task once so many are stored and processed."""
    async with asyncio.timeout(20):
        while True:
            callbacks: list[dict[str, Any]] = (
                await broker.client.get("/api/callbacks", params={"task": task_id})
            ).json()["data"]
            if len(callbacks) >= number and all(h["processedAt"] for h in callbacks):
                return callbacks
            await asyncio.sleep(0.01)


async def wait_until_processed(broker: RunningBroker, callback_id: str) -> None:
    """Wait until a worker has processed the callback."""
    async with asyncio.timeout(20):
        while True:
            if (await broker.client.get(f"/api/callbacks/{callback_id}")).json()["data"]["processedAt"]:
                return
            await asyncio.sleep(0.01)


async def wait_for_ended_job(broker: RunningBroker) -> str:
    """Return the id of the first job that has ended at the provider."""
    async with asyncio.timeout(20):
        while True:
            ended = [job["taskId"] for job in await broker.provider_jobs() if job["state"] == "success"]
            if ended:
                return str(ended[0])
            await asyncio.sleep(0.02)


async def test_received_callback_is_listed_and_not_missing(broker: RunningBroker) -> None:
    task_id = await broker.create_task("a red bicycle")
    await broker.wait_end(task_id)
    (callback,) = await inbox(broker, task_id, 1)
    assert (callback["verification"], callback["attempt"]) == ("accept", 1)
    assert 0 <= callback["lagSeconds"] < 10
    assert await learned(broker, task_id) == ["callback"]
    assert (await count_missing(broker), await missing_metric(broker)) == ({}, 0)


@pytest.mark.parametrize("mood", ["", " [mood:flagged]"], ids=["success", "failure"])
async def test_lost_callback_is_counted_as_missing(broker: RunningBroker, mood: str) -> None:
    task_id = await broker.create_task(f"a red bicycle [mood:lost]{mood}")
    await broker.wait_end(task_id)
    assert await learned(broker, task_id) == ["check"]
    assert (await count_missing(broker), await missing_metric(broker)) == ({"kie": 1}, 1)


async def test_late_callback_is_missing_until_it_arrives(broker: RunningBroker) -> None:
    task_id = await broker.create_task("a red bicycle [mood:late:1]")
    await broker.wait_end(task_id)
    assert await learned(broker, task_id) == ["check"]
    await inbox(broker, task_id, 1)
    assert (await count_missing(broker), await missing_metric(broker)) == ({}, 1)


async def test_polled_task_has_no_missing_callback(tmp_path: Path) -> None:
    async with open_broker(tmp_path, with_callbacks=False) as broker:
        task_id = await broker.create_task("a red bicycle")
        await broker.wait_end(task_id)
        assert await learned(broker, task_id) == ["poll"]
        assert (await count_missing(broker), await missing_metric(broker)) == ({}, 0)


async def test_unauthenticated_hint_does_not_count_as_a_callback(tmp_path: Path) -> None:
    """It makes the broker poll sooner; the callback of the provider is still missing."""
    async with open_broker(tmp_path, check_after=60, task_deadline=300) as broker:
        task_id = await broker.create_task("a red bicycle [mood:lost]")
        body = {"data": {"taskId": await wait_for_ended_job(broker), "state": "success"}}
        forwarded = {"X-Forwarded-For": "203.0.113.7"}
        assert (await broker.client.post("/api/webhook/kie", json=body, headers=forwarded)).status_code == 202
        await broker.wait_end(task_id)
        assert await learned(broker, task_id) == ["check"]
        assert await count_missing(broker) == {"kie": 1}


async def test_missing_callbacks_are_listed_after_a_minute(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        task_id = await broker.create_task("a red bicycle [mood:lost]")
        await broker.wait_end(task_id)
        assert (await broker.client.get("/api/callbacks")).json()["missing"]["count"] == 0
        await broker.services.database.execute("UPDATE attempts SET ended_at = ended_at - 61")
        expected = {"count": 1, "hours": 24.0, "providers": {"kie": 1}}
        assert (await broker.client.get("/api/callbacks")).json()["missing"] == expected


async def test_replay_after_the_journey_changes_nothing(broker: RunningBroker) -> None:
    """The same success again: no second download, no duplicate result, the same end."""
    task_id = await broker.create_task("a red bicycle")
    before = await broker.wait_end(task_id)
    (callback,) = await inbox(broker, task_id, 1)
    answer = await broker.client.post(f"/api/callbacks/{callback['id']}/replay")
    assert answer.json()["data"]["effect"] == "nothing: the task is succeeded already"
    await wait_until_processed(broker, answer.json()["data"]["replayId"])
    assert await broker.get_task(task_id) == before
    (attempt,) = await Attempts(broker.services.database).list_of_task(task_id)
    assert (attempt.outcome, attempt.duplicate_result) == ("succeeded", None)
