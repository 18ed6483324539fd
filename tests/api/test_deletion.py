"""Deletion on request: an ended task goes at once with everything that shows its content."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from storage.callbacks import StoredCallback
from storage.ids import reference_owner
from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import ApiBroker, open_api, png

pytestmark = pytest.mark.anyio


async def add_ended(broker: ApiBroker, number: int = 1, **changes: object) -> Task:
    ended = {"state": TaskState.SUCCEEDED, "ended_at": broker.services.clock.now(), "prompt": "a secret fox"}
    return await broker.add_task(number=number, **{**ended, **changes})


async def wait_files(broker: ApiBroker, count: int) -> None:
    """Wait until the worker has deleted all files but so many."""
    async with asyncio.timeout(5):
        while (await broker.stored_counts())[3] != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_deleted_task_is_gone_with_images_webhooks_and_callbacks(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task, tables = await add_ended(broker), broker.services.tables
        image = await broker.add_image(task.id, png())
        delivery = await broker.add_delivery(task)
        callback = StoredCallback(
            id=f"callback_{1:024x}", provider="kie", task_id=task.id, verification="accept", status=200, reason="",
            received_at=1.0, processed_at=2.0, headers="{}", query="{}", body="a secret fox", evidence="{}",
        )  # fmt: skip
        await broker.services.database.transact(tables.callbacks.insert_callback(callback))
        answer = await broker.client.delete(f"/api/task/{task.id}")
        assert (answer.status_code, answer.content) == (204, b"")
        gone = await broker.client.get(f"/api/task/{task.id}")
        assert (gone.status_code, gone.json()["code"]) == (410, "task_expired")
        assert (await broker.client.get(f"/uploads/images/{image.name}")).status_code == 404
        assert (await broker.client.get(f"/api/deliveries/{delivery.id}")).status_code == 404
        assert (await broker.client.get(f"/api/callbacks/{callback.id}")).status_code == 404
        assert (await broker.client.get("/api/tasks")).json()["data"] == []
        await wait_files(broker, 0)
        row = await tables.tasks.get(task.id)
        assert row is not None
        assert row.prompt == ""
        assert (await broker.client.delete(f"/api/task/{task.id}")).status_code == 410


async def test_references_stay_for_the_other_task_of_the_request(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        batch = f"batch_{7:043x}"
        tasks = [await add_ended(broker, number, batch=batch) for number in (1, 2)]
        reference = await broker.add_image(reference_owner(batch), png("blue"), kind="reference")
        result = await broker.add_image(tasks[0].id, png())
        assert (await broker.client.delete(f"/api/task/{tasks[0].id}")).status_code == 204
        await wait_files(broker, 1)
        assert (await broker.client.get(f"/uploads/references/{reference.name}")).status_code == 200
        assert (await broker.client.get(f"/uploads/images/{result.name}")).status_code == 404
        assert (await broker.client.delete(f"/api/task/{tasks[1].id}")).status_code == 204
        await wait_files(broker, 0)


async def test_task_that_has_not_ended_is_canceled_and_nothing_is_deleted_with_cancel_only(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        running, ended = await broker.add_task(number=1), await add_ended(broker, 2)
        answer = await broker.client.delete(f"/api/task/{running.id}")
        assert (answer.status_code, answer.json()["data"]["status"]) == (200, "canceled")
        kept = await broker.client.delete(f"/api/task/{ended.id}", params={"cancelOnly": "true"})
        assert (kept.status_code, kept.json()["code"]) == (409, "conflict")
        assert (await broker.client.get(f"/api/task/{ended.id}")).status_code == 200


async def test_image_that_arrives_after_the_deletion_is_not_kept(tmp_path: Path) -> None:
    """It was shown as failed, while its paid image was still being downloaded."""
    async with open_api(tmp_path) as broker:
        late = await add_ended(broker, state=TaskState.FETCHING, error_code="download_failed", outputs=("https://a/b",))
        assert (await broker.client.get(f"/api/task/{late.id}")).json()["data"]["status"] == "failed"
        answers = await asyncio.gather(*(broker.client.delete(f"/api/task/{late.id}") for _ in range(3)))
        assert {answer.status_code for answer in answers} <= {204, 410}
        row = await broker.services.tables.tasks.get(late.id)
        assert row is not None
        assert (row.state, row.outputs) == (TaskState.EXPIRED, ())
