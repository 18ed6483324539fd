"""What a caller keeps and finds over HTTP: pins, and the search in the own tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import ApiBroker, open_api, png

pytestmark = pytest.mark.anyio

USER = f"user_{1:032x}"


async def ids_of(broker: ApiBroker, **params: str) -> list[str]:
    answer = await broker.client.get("/api/tasks", params=params)
    assert answer.status_code == 200, answer.text
    return [data["id"] for data in answer.json()["data"]]


async def test_tasks_are_found_by_words_and_model_and_only_the_own_ones(tmp_path: Path) -> None:
    """The operator does not find the prompts of a user, one word after the other."""
    async with open_api(tmp_path) as broker:
        fox, dog = [await broker.add_task(number=n, prompt=f"a red {animal}") for n, animal in ((1, "fox"), (2, "dog"))]
        pro = await broker.add_task(number=3, prompt="a FOX", model="nano-banana-pro", state=TaskState.FAILED)
        await broker.add_task(number=4, prompt="a red fox", caller=USER)
        assert set(await ids_of(broker, q="fox")) == {fox.id, pro.id}
        assert await ids_of(broker, q=" red  FOX ") == [fox.id]
        assert await ids_of(broker, q="fox", model="nano-banana-pro") == [pro.id]
        assert await ids_of(broker, q="fox", model="google/nano-banana-pro", status="failed") == [pro.id]
        assert set(await ids_of(broker, model="nano-banana")) == {fox.id, dog.id, f"task_{'0' * 19}…"}
        first = (await broker.client.get("/api/tasks", params={"q": "fox", "limit": "1"})).json()
        assert await ids_of(broker, q="fox", limit="1", cursor=first["nextCursor"]) != [first["data"][0]["id"]]
        wrong = {"q": ["w " * 11, "x" * 201], "model": ["no-such-model", "\x01"]}
        for name, values in wrong.items():
            for value in values:
                answer = await broker.client.get("/api/tasks", params={name: value})
                assert (answer.status_code, answer.json()["field"]) == (400, name), answer.text


async def test_pinned_task_does_not_expire_and_an_unpinned_one_goes_at_once(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        now, client = broker.services.clock.now(), broker.client
        ended = {"state": TaskState.SUCCEEDED, "ended_at": now - 80_000, "due_at": now + 6_400}
        task = await broker.add_task(**ended)
        image = await broker.add_image(task.id, png())
        before = (await client.get(f"/api/task/{task.id}")).json()["data"]
        pinned = await client.post(f"/api/task/{task.id}/pin")
        assert (pinned.status_code, pinned.json()["data"]) == (200, {**before, "expiresAt": None})
        assert (await client.get(f"/api/task/{task.id}")).json()["data"]["expiresAt"] is None, "not from a cache"
        assert (await client.get(f"/uploads/images/{image.name}.json")).json()["data"]["expiresAt"] is None
        assert (await client.post(f"/api/task/{task.id}/unpin")).json()["data"] == before
        await client.post(f"/api/task/{task.id}/pin")
        await broker.services.database.execute("UPDATE tasks SET ended_at = :at", at=now - 90_000)
        answer = await client.post(f"/api/task/{task.id}/unpin")
        assert answer.status_code in {200, 410}
        await _wait_expired(broker, task)
        for change in ("pin", "unpin"):
            gone = await client.post(f"/api/task/{task.id}/{change}")
            assert (gone.status_code, gone.json()["code"]) == (410, "task_expired")


async def _wait_expired(broker: ApiBroker, task: Task) -> None:
    """Wait until the worker has expired a task that is due."""
    with broker.services.database.listen(f"task:{task.id}") as subscription:
        while (row := await broker.services.tables.tasks.get(task.id)) and row.state != TaskState.EXPIRED:
            await subscription.wait(0.02)


async def test_task_of_another_owner_can_be_neither_pinned_nor_unpinned(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(caller=USER, pinned_at=1.0)
        for change in ("pin", "unpin"):
            answer = await broker.client.post(f"/api/task/{task.id}/{change}")
            assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")
        row = await broker.services.tables.tasks.get(task.id)
        assert row is not None
        assert row.pinned_at == 1.0
