"""Batches over HTTP: one poll and one cancellation for all tasks of a request; retries of failed tasks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from storage.sql.scope import EVERYTHING
from storage.states import TaskState
from tests.support.api import NEVER, ApiBroker, open_api, png
from tests.support.brokers import open_broker

pytestmark = pytest.mark.anyio

CREATE = "/api/generate/image"
BATCH = f"batch_{'b' * 43}"


async def batch_of(broker: ApiBroker, *states: dict[str, Any]) -> None:
    for number, changes in enumerate(states, 1):
        await broker.add_task(number=number, batch=BATCH, **changes)


WAITING = {"state": TaskState.WAITING}
QUEUED = {"state": TaskState.QUEUED, "attempt": 0}
DONE = {"state": TaskState.SUCCEEDED, "ended_at": 1.0}
FAILED = {"state": TaskState.FAILED, "ended_at": 1.0, "error_code": "no_image"}
CANCELED = {"state": TaskState.CANCELED, "ended_at": 1.0, "error_code": "canceled"}
EXPIRED = {"state": TaskState.EXPIRED, "ended_at": 1.0}


async def test_order_response_names_its_batch(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        created = (await broker.client.post(CREATE, json={"prompt": "a banana", "numberOfImages": 3})).json()
        data = (await broker.client.get(created["batchUrl"])).json()["data"]
        assert data["id"] == created["batchId"]
        assert [task["id"] for task in data["tasks"]] == created["taskIds"]


async def test_one_poll_returns_all_tasks(tmp_path: Path) -> None:
    """Each as in its own poll."""
    async with open_api(tmp_path) as broker:
        await batch_of(broker, WAITING, DONE, CANCELED)
        answer = await broker.client.get(f"/api/batch/{BATCH}")
        data = answer.json()["data"]
        assert data["counts"] == {"pending": 0, "processing": 1, "completed": 1, "failed": 0, "canceled": 1}
        assert answer.headers["retry-after"] == "3"
        for task in data["tasks"]:
            assert (await broker.client.get(f"/api/task/{task['id']}")).json()["data"] == task
        again = await broker.client.get(f"/api/batch/{BATCH}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ([QUEUED, QUEUED], "pending"),
        ([QUEUED, DONE], "processing"),
        ([WAITING, QUEUED], "processing"),
        ([WAITING, FAILED], "processing"),
        ([DONE, DONE], "completed"),
        ([DONE, FAILED, CANCELED], "completed"),
        ([FAILED, CANCELED], "failed"),
        ([CANCELED, CANCELED], "canceled"),
        ([DONE, EXPIRED], "completed"),
    ],
)
async def test_batch_status_follows_from_its_tasks(tmp_path: Path, states: list[dict[str, Any]], status: str) -> None:
    """Unfinished while one task is; then completed if at least one has an image."""
    async with open_api(tmp_path) as broker:
        await batch_of(broker, *states)
        answer = await broker.client.get(f"/api/batch/{BATCH}")
        assert answer.json()["data"]["status"] == status
        assert ("retry-after" in answer.headers) == (status in {"pending", "processing"})


async def test_wait_ends_with_the_last_task(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await batch_of(broker, DONE, WAITING, WAITING)
        one, other = [await broker.services.queries.get(f"task_{number:043x}", EVERYTHING) for number in (2, 3)]
        poll = asyncio.create_task(broker.client.get(f"/api/batch/{BATCH}?wait=30"))
        for task in (one, other):
            assert not poll.done()
            await broker.wait_for_listener(task)
            await broker.change_task(task, state=TaskState.SUCCEEDED, ended_at=2.0)
        assert (await poll).json()["data"]["status"] == "completed"


@pytest.mark.parametrize("batch_id", [BATCH, "batch_x", f"task_{'0' * 43}", "x" * 300, "batch_%00"])
async def test_unknown_batch_is_not_found(tmp_path: Path, batch_id: str) -> None:
    """The id of a task is not that of its batch: it must not reveal the other tasks."""
    async with open_api(tmp_path) as broker:
        await broker.add_task(number=0)
        answer = await broker.client.get(f"/api/batch/{batch_id}")
        assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")


async def test_deleted_batch_is_gone(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await batch_of(broker, EXPIRED, EXPIRED)
        answer = await broker.client.get(f"/api/batch/{BATCH}")
        assert (answer.status_code, answer.json()["code"]) == (410, "task_expired")


async def test_cancel_ends_every_cancelable_task(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        await batch_of(broker, DONE, WAITING, QUEUED)
        data = (await broker.client.delete(f"/api/batch/{BATCH}")).json()["data"]
        assert [task["status"] for task in data["tasks"]] == ["completed", "canceled", "canceled"]
        again = await broker.client.delete(f"/api/batch/{BATCH}")
        assert (again.status_code, again.json()["code"]) == (409, "conflict")


async def test_six_images_of_one_request_arrive(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        order = {"prompt": "six foxes", "numberOfImages": 6}
        created = (await broker.client.post(CREATE, json=order)).json()
        async with asyncio.timeout(20):
            data = (await broker.client.get(created["batchUrl"], params={"wait": 20})).json()["data"]
        assert (data["status"], data["counts"]["completed"]) == ("completed", 6)
        assert len({task["result"] for task in data["tasks"]}) == 6


# -- again


async def test_retry_of_a_failed_task_is_a_new_task_with_the_same_order(tmp_path: Path) -> None:
    """References are copied, so that the deletion of one task does not delete those of the other."""
    async with open_broker(tmp_path) as broker:
        fields = {
            "prompt": "a fox [mood:flagged]",
            "model": "nano-banana-pro",
            "aspectRatio": "16:9",
            "resolution": "2K",
        }
        files = {"image": ("a.png", png(), "image/png")}
        first = (await broker.client.post(CREATE, data=fields, files=files)).json()["taskId"]
        assert (await broker.wait_end(first))["status"] == "failed"
        answer = await broker.client.post(f"/api/task/{first}/retry")
        assert answer.status_code == 202
        second = answer.json()["taskId"]
        assert answer.headers["location"] == f"/api/task/{second}"
        tasks = [await broker.services.queries.get(task_id, EVERYTHING) for task_id in (first, second)]
        params = [(t.prompt, t.model, t.mode, t.aspect_ratio, t.resolution, len(t.references)) for t in tasks]
        assert params[0] == params[1]
        assert tasks[0].references[0]["sha256"] == tasks[1].references[0]["sha256"]
        assert tasks[0].references[0]["blob"] != tasks[1].references[0]["blob"]
        assert (await broker.wait_end(second))["status"] == "failed"


async def test_retry_stays_at_the_provider_that_the_order_named(tmp_path: Path) -> None:
    async with open_api(tmp_path, wavespeed_keys="k", wavespeed_url="http://127.0.0.1:9") as broker:
        order = {"prompt": "a fox", "model": "nano-banana-2", "provider": "wavespeed"}
        first = (await broker.client.post(CREATE, json=order)).json()["taskId"]
        await broker.client.delete(f"/api/task/{first}")
        second = (await broker.client.post(f"/api/task/{first}/retry")).json()["taskId"]
        task = await broker.services.queries.get(second, EVERYTHING)
        assert (task.provider, task.candidates) == ("wavespeed", ("wavespeed",))


async def test_repeated_retry_returns_the_same_new_task(tmp_path: Path) -> None:
    """A double click on "try again" is paid once."""
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(**FAILED)
        posts = (broker.client.post(f"/api/task/{task.id}/retry") for _ in range(10))
        answers = await asyncio.gather(*posts)
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["taskId"] for answer in answers}) == 1
        assert (await broker.stored_counts())[0] == 2


async def end(broker: ApiBroker, task_id: str, state: str) -> None:
    """Set the state of a task, whatever the worker is doing with it."""
    await broker.services.database.execute(
        "UPDATE tasks SET state = :state, ended_at = 1, due_at = :never, version = version + 1 WHERE id = :id",
        id=task_id,
        state=state,
        never=NEVER,
    )


async def test_failed_retry_can_be_retried(tmp_path: Path) -> None:
    """By either id: a page that knows only the first task must not be stuck."""
    async with open_api(tmp_path) as broker:
        first = await broker.add_task(**FAILED)
        second = (await broker.client.post(f"/api/task/{first.id}/retry")).json()["taskId"]
        await end(broker, second, "failed")
        third = (await broker.client.post(f"/api/task/{first.id}/retry")).json()["taskId"]
        assert third not in {first.id, second}
        assert (await broker.client.post(f"/api/task/{second}/retry")).json()["taskId"] == third
        await end(broker, third, "succeeded")
        answer = await broker.client.post(f"/api/task/{first.id}/retry")
        assert (answer.status_code, third in answer.json()["error"]) == (409, True)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (WAITING, "processing"),
        (QUEUED, "pending"),
        (DONE, "completed"),
        ({"state": TaskState.FETCHING, "ended_at": 1.0, "error_code": "result_gone"}, "still fetching"),
    ],
)
async def test_task_that_did_not_fail_for_good_is_not_retried(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(**changes)
        answer = await broker.client.post(f"/api/task/{task.id}/retry")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert why in answer.json()["error"]


async def test_task_without_its_references_is_not_retried(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        ref = {"name": "a", "blob": f"refs_{'0' * 43}/{'0' * 64}", "media_type": "image/png", "size": 1, "sha256": "0"}
        task = await broker.add_task(**FAILED, mode="image-to-image", references=(ref,))
        answer = await broker.client.post(f"/api/task/{task.id}/retry")
        assert (answer.status_code, answer.json()["code"]) == (410, "task_expired")
        assert (await broker.stored_counts())[0] == 1
