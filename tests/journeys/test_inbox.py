"""The inbox over whole journeys: callbacks that come, come late, never come, and come once more by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.attempts import Attempts
from tests.support.brokers import House, open_house
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgres"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    settings: dict[str, Any] = {}
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        settings["database_url"] = await server.fresh()
    async with open_house(tmp_path, **settings) as opened:
        yield opened


async def learned(house: House, task_id: str) -> list[str | None]:
    return [attempt.learned_by for attempt in await Attempts(house.services.database).of_task(task_id)]


async def never_came(house: House) -> dict[str, int]:
    """Among all that ended so far: those of the last minute may be on their way, and are not counted otherwise."""
    now = house.services.clock.now()
    return await house.services.hooks.missing(since=0, until=now + 60, limit=100)


async def counted(house: House) -> float:
    page = (await house.client.get("/metrics")).text
    lines = [line for line in page.splitlines() if line.startswith('broker_callbacks_missing_total{provider="kie"}')]
    return float(lines[0].split()[-1]) if lines else 0.0


async def inbox(house: House, task_id: str, number: int) -> list[dict[str, Any]]:
    """As soon as so many callbacks of the task are there, processed."""
    async with asyncio.timeout(20):
        while True:
            hooks: list[dict[str, Any]] = (await house.client.get("/api/callbacks", params={"task": task_id})).json()[
                "data"
            ]
            if len(hooks) >= number and all(h["processedAt"] for h in hooks):
                return hooks
            await asyncio.sleep(0.01)


async def read(house: House, hook_id: str) -> None:
    """Until its news is taken in."""
    async with asyncio.timeout(20):
        while True:
            if (await house.client.get(f"/api/callbacks/{hook_id}")).json()["data"]["processedAt"]:
                return
            await asyncio.sleep(0.01)


async def job_that_ended(house: House) -> str:
    """Its id, when it is over at the other side."""
    async with asyncio.timeout(20):
        while True:
            ended = [job["taskId"] for job in await house.jobs() if job["state"] == "success"]
            if ended:
                return str(ended[0])
            await asyncio.sleep(0.02)


async def test_a_callback_that_came_is_known_by_its_times(house: House) -> None:
    task_id = await house.order("a red bicycle")
    await house.end(task_id)
    (hook,) = await inbox(house, task_id, 1)
    assert (hook["verification"], hook["attempt"]) == ("accept", 1)
    assert 0 <= hook["lagSeconds"] < 10
    assert await learned(house, task_id) == ["callback"]
    assert (await never_came(house), await counted(house)) == ({}, 0)


@pytest.mark.parametrize("mood", ["", " [mood:flagged]"], ids=["success", "failure"])
async def test_a_lost_callback_is_missed(house: House, mood: str) -> None:
    task_id = await house.order(f"a red bicycle [mood:lost]{mood}")
    await house.end(task_id)
    assert await learned(house, task_id) == ["question"]
    assert (await never_came(house), await counted(house)) == ({"kie": 1}, 1)


async def test_a_late_callback_is_missed_only_until_it_comes(house: House) -> None:
    task_id = await house.order("a red bicycle [mood:late:1]")
    await house.end(task_id)
    assert await learned(house, task_id) == ["question"]
    await inbox(house, task_id, 1)
    assert (await never_came(house), await counted(house)) == ({}, 1)


async def test_where_no_callback_can_come_none_is_missed(tmp_path: Path) -> None:
    async with open_house(tmp_path, hooked=False) as house:
        task_id = await house.order("a red bicycle")
        await house.end(task_id)
        assert await learned(house, task_id) == ["poll"]
        assert (await never_came(house), await counted(house)) == ({}, 0)


async def test_unauthenticated_hint_does_not_count_as_a_callback(tmp_path: Path) -> None:
    """It makes us ask sooner; that the provider never called stays true."""
    async with open_house(tmp_path, check_after=60, task_deadline=300) as house:
        task_id = await house.order("a red bicycle [mood:lost]")
        body = {"data": {"taskId": await job_that_ended(house), "state": "success"}}
        stranger = {"X-Forwarded-For": "203.0.113.7"}
        assert (await house.client.post("/api/webhook/kie", json=body, headers=stranger)).status_code == 202
        await house.end(task_id)
        assert await learned(house, task_id) == ["question"]
        assert await never_came(house) == {"kie": 1}


async def test_what_never_came_stands_beside_the_inbox_after_a_minute(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        task_id = await house.order("a red bicycle [mood:lost]")
        await house.end(task_id)
        assert (await house.client.get("/api/callbacks")).json()["missing"]["count"] == 0
        await house.services.database.execute("UPDATE attempts SET ended_at = ended_at - 61")
        expected = {"count": 1, "hours": 24.0, "providers": {"kie": 1}}
        assert (await house.client.get("/api/callbacks")).json()["missing"] == expected


async def test_a_replay_of_the_whole_journey_ends_nothing_twice(house: House) -> None:
    """A success once more, after the image is here: no second download, no spare, no other end."""
    task_id = await house.order("a red bicycle")
    before = await house.end(task_id)
    (hook,) = await inbox(house, task_id, 1)
    answer = await house.client.post(f"/api/callbacks/{hook['id']}/replay")
    assert answer.json()["data"]["effect"] == "nothing: the task is succeeded already"
    await read(house, answer.json()["data"]["replayId"])
    assert await house.look(task_id) == before
    (attempt,) = await Attempts(house.services.database).of_task(task_id)
    assert (attempt.outcome, attempt.spare) == ("succeeded", None)
