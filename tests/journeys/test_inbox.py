"""The inbox over whole journeys: callbacks that come, come late, never come, and come once more by hand."""

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


async def never_came(broker: RunningBroker) -> dict[str, int]:
    """Among all that ended so far: those of the last minute may be on their way, and are not counted otherwise."""
    now = broker.services.clock.now()
    return await broker.services.callbacks.count_missing(since=0, until=now + 60, limit=100)


async def counted(broker: RunningBroker) -> float:
    page = (await broker.client.get("/metrics")).text
    lines = [line for line in page.splitlines() if line.startswith('broker_callbacks_missing_total{provider="kie"}')]
    return float(lines[0].split()[-1]) if lines else 0.0


async def inbox(broker: RunningBroker, task_id: str, number: int) -> list[dict[str, Any]]:
    """As soon as so many callbacks of the task are there, processed."""
    async with asyncio.timeout(20):
        while True:
            hooks: list[dict[str, Any]] = (await broker.client.get("/api/callbacks", params={"task": task_id})).json()[
                "data"
            ]
            if len(hooks) >= number and all(h["processedAt"] for h in hooks):
                return hooks
            await asyncio.sleep(0.01)


async def read(broker: RunningBroker, hook_id: str) -> None:
    """Until its news is taken in."""
    async with asyncio.timeout(20):
        while True:
            if (await broker.client.get(f"/api/callbacks/{hook_id}")).json()["data"]["processedAt"]:
                return
            await asyncio.sleep(0.01)


async def job_that_ended(broker: RunningBroker) -> str:
    """Its id, when it is over at the other side."""
    async with asyncio.timeout(20):
        while True:
            ended = [job["taskId"] for job in await broker.provider_jobs() if job["state"] == "success"]
            if ended:
                return str(ended[0])
            await asyncio.sleep(0.02)


async def test_a_callback_that_came_is_known_by_its_times(broker: RunningBroker) -> None:
    task_id = await broker.create_task("a red bicycle")
    await broker.wait_end(task_id)
    (hook,) = await inbox(broker, task_id, 1)
    assert (hook["verification"], hook["attempt"]) == ("accept", 1)
    assert 0 <= hook["lagSeconds"] < 10
    assert await learned(broker, task_id) == ["callback"]
    assert (await never_came(broker), await counted(broker)) == ({}, 0)


@pytest.mark.parametrize("mood", ["", " [mood:flagged]"], ids=["success", "failure"])
async def test_a_lost_callback_is_missed(broker: RunningBroker, mood: str) -> None:
    task_id = await broker.create_task(f"a red bicycle [mood:lost]{mood}")
    await broker.wait_end(task_id)
    assert await learned(broker, task_id) == ["check"]
    assert (await never_came(broker), await counted(broker)) == ({"kie": 1}, 1)


async def test_a_late_callback_is_missed_only_until_it_comes(broker: RunningBroker) -> None:
    task_id = await broker.create_task("a red bicycle [mood:late:1]")
    await broker.wait_end(task_id)
    assert await learned(broker, task_id) == ["check"]
    await inbox(broker, task_id, 1)
    assert (await never_came(broker), await counted(broker)) == ({}, 1)


async def test_where_no_callback_can_come_none_is_missed(tmp_path: Path) -> None:
    async with open_broker(tmp_path, with_callbacks=False) as broker:
        task_id = await broker.create_task("a red bicycle")
        await broker.wait_end(task_id)
        assert await learned(broker, task_id) == ["poll"]
        assert (await never_came(broker), await counted(broker)) == ({}, 0)


async def test_unauthenticated_hint_does_not_count_as_a_callback(tmp_path: Path) -> None:
    """It makes us ask sooner; that the provider never called stays true."""
    async with open_broker(tmp_path, check_after=60, task_deadline=300) as broker:
        task_id = await broker.create_task("a red bicycle [mood:lost]")
        body = {"data": {"taskId": await job_that_ended(broker), "state": "success"}}
        stranger = {"X-Forwarded-For": "203.0.113.7"}
        assert (await broker.client.post("/api/webhook/kie", json=body, headers=stranger)).status_code == 202
        await broker.wait_end(task_id)
        assert await learned(broker, task_id) == ["check"]
        assert await never_came(broker) == {"kie": 1}


async def test_what_never_came_stands_beside_the_inbox_after_a_minute(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        task_id = await broker.create_task("a red bicycle [mood:lost]")
        await broker.wait_end(task_id)
        assert (await broker.client.get("/api/callbacks")).json()["missing"]["count"] == 0
        await broker.services.database.execute("UPDATE attempts SET ended_at = ended_at - 61")
        expected = {"count": 1, "hours": 24.0, "providers": {"kie": 1}}
        assert (await broker.client.get("/api/callbacks")).json()["missing"] == expected


async def test_a_replay_of_the_whole_journey_ends_nothing_twice(broker: RunningBroker) -> None:
    """A success once more, after the image is here: no second download, no spare, no other end."""
    task_id = await broker.create_task("a red bicycle")
    before = await broker.wait_end(task_id)
    (hook,) = await inbox(broker, task_id, 1)
    answer = await broker.client.post(f"/api/callbacks/{hook['id']}/replay")
    assert answer.json()["data"]["effect"] == "nothing: the task is succeeded already"
    await read(broker, answer.json()["data"]["replayId"])
    assert await broker.get_task(task_id) == before
    (attempt,) = await Attempts(broker.services.database).list_of_task(task_id)
    assert (attempt.outcome, attempt.duplicate_result) == ("succeeded", None)
