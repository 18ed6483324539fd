"""Twenty things that integrations of this kind get wrong, and that we do not: a test for each."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from storage.callbacks import CallbackRecord
from storage.sql.scope import EVERYTHING
from tests.support.brokers import RunningBroker, open_broker

pytestmark = pytest.mark.anyio

PRIVATE = "http://169.254.169.254/latest/meta-data/x.png"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with open_broker(tmp_path) as opened:
        yield opened


@pytest.fixture
async def slow_broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    """A broker that checks late and waits long, so that only callbacks move a task."""
    async with open_broker(tmp_path, check_after=60, task_deadline=120) as opened:
        yield opened


async def submitted(broker: RunningBroker, count: int = 1) -> list[dict[str, Any]]:
    """The provider's jobs, as soon as there are `count`."""
    async with asyncio.timeout(10):
        while True:
            jobs = await broker.provider_jobs()
            if len(jobs) >= count:
                return jobs
            await asyncio.sleep(0.02)


def market_body(job: str, **data: Any) -> dict[str, Any]:
    """A callback as kie.ai's Market models send it."""
    return {"code": 200, "msg": "success", "data": {"taskId": job, "state": "success", **data}}


def results(*urls: str) -> str:
    return '{"resultUrls":[' + ",".join(f'"{url}"' for url in urls) + "]}"


async def call_back(broker: RunningBroker, task_id: str, body: Any, *, attempt: int = 1) -> httpx.Response:
    """As the provider would: at the address it was given, from outside."""
    address = broker.services.worker.steps.submit.callback_url("kie", task_id, attempt)
    assert address is not None
    return await broker.client.post(address, json=body, headers={"x-forwarded-for": "203.0.113.7"})


async def post_from_outside(broker: RunningBroker, path: str, body: Any) -> httpx.Response:
    return await broker.client.post(path, json=body, headers={"x-forwarded-for": "203.0.113.7"})


async def wait_processed(broker: RunningBroker) -> list[CallbackRecord]:
    """The inbox, once every callback is processed."""
    async with asyncio.timeout(10):
        while True:
            callbacks = await broker.services.tables.callbacks.list_newest(limit=50)
            if all(callback.processed_at for callback in callbacks):
                return callbacks
            await asyncio.sleep(0.02)


async def test_01_the_job_id_of_the_create_answer_is_read(broker: RunningBroker) -> None:
    """No callback ever comes, so only the id from the answer can lead to the image."""
    task_id = await broker.create_task("a red bicycle [mood:lost]")
    assert (await broker.wait_end(task_id))["status"] == "completed"


async def test_02_a_200_with_an_error_code_is_a_failure(broker: RunningBroker) -> None:
    data = await broker.wait_end(await broker.create_task("a red bicycle [mood:code:402]"))
    assert (data["status"], data["errorDetail"]["code"]) == ("failed", "provider_credits")


async def test_03_04_05_a_market_callback_is_understood(slow_broker: RunningBroker) -> None:
    """data.taskId, data.state and the JSON string in resultJson."""
    task_id = await slow_broker.create_task("a red bicycle [mood:late:60]")
    (job,) = await submitted(slow_broker)
    finished = await slow_broker.create_task("a blue bicycle")
    url = (await slow_broker.wait_end(finished))["result"]
    body = market_body(job["taskId"], resultJson=results(await result_url(slow_broker, finished)), failCode=None)
    assert (await call_back(slow_broker, task_id, body)).status_code == 200
    assert (await slow_broker.wait_end(task_id))["result"] != url


async def result_url(broker: RunningBroker, task_id: str) -> str:
    """Return the provider's URL of the result of a task."""
    task = await broker.services.queries.get(task_id, EVERYTHING)
    return task.outputs[0]


async def test_04_a_fail_callback_ends_the_task(slow_broker: RunningBroker) -> None:
    task_id = await slow_broker.create_task("a red bicycle [mood:flagged]")
    data = await slow_broker.wait_end(task_id)
    assert (data["status"], data["errorDetail"]["code"]) == ("failed", "safety_input")


async def test_06_a_restart_forgets_nothing(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as first:
        task_id = await first.create_task("a red bicycle")
        before = await first.wait_end(task_id)
    async with open_broker(tmp_path) as second:
        after = await second.get_task(task_id)
        image = await second.client.get(after["result"])
    assert after == before
    assert image.status_code == 200


async def test_07_old_tasks_and_their_files_go_by_themselves(tmp_path: Path) -> None:
    async with open_broker(tmp_path, retention_hours=1 / 3600) as broker:
        task_id = await broker.create_task("a red bicycle")
        data = await broker.wait_end(task_id)
        blobs = tmp_path / "blobs"
        async with asyncio.timeout(15):
            while True:
                if not any(path.is_file() for path in blobs.rglob("*")):
                    break
                await asyncio.sleep(0.05)
        assert (await broker.client.get(data["result"])).status_code == 404
        gone = await broker.client.get(f"/api/task/{task_id}")
    assert (gone.status_code, gone.json()["code"]) == (410, "task_expired")


async def test_08_a_callback_finds_its_task_by_an_index(broker: RunningBroker) -> None:
    database = broker.services.database
    plan = await database.fetch(
        "EXPLAIN QUERY PLAN SELECT t.* FROM attempts a JOIN tasks t ON t.id = a.task_id WHERE a.job_id = :job LIMIT 1",
        job="x",
    )
    assert [row["detail"] for row in plan if row["detail"].startswith("SCAN")] == []


async def test_09_a_second_callback_still_finds_its_task_and_changes_nothing(broker: RunningBroker) -> None:
    task_id = await broker.create_task("a red bicycle [mood:twice:3]")
    data = await broker.wait_end(task_id)
    (job,) = await broker.provider_jobs()
    again = await call_back(
        broker, task_id, market_body(job["taskId"], resultJson=results("http://evil.example/x.png"))
    )
    assert again.status_code == 200
    await wait_processed(broker)
    assert await broker.get_task(task_id) == data


async def test_10_an_unknown_task_is_not_a_success_and_an_early_callback_is_not_lost(broker: RunningBroker) -> None:
    body = market_body("0" * 32, resultJson=results("http://evil.example/x.png"))
    assert (await post_from_outside(broker, "/api/webhook/nano-banana", body)).status_code == 404
    task_id = await broker.create_task("a red bicycle [mood:early]")
    assert (await broker.wait_end(task_id))["status"] == "completed"


async def test_11_a_callback_must_prove_itself(slow_broker: RunningBroker) -> None:
    task_id = await slow_broker.create_task("a red bicycle [mood:slow:2]")
    (job,) = await submitted(slow_broker)
    evil = market_body(job["taskId"], resultJson=results("http://evil.example/x.png"))
    path = f"/api/webhook/nano-banana?task={task_id}&attempt=1"
    assert (await post_from_outside(slow_broker, f"{path}&token={'0' * 32}", evil)).status_code == 401
    assert (await post_from_outside(slow_broker, path, evil)).status_code == 202
    await wait_processed(slow_broker)
    assert (await slow_broker.get_task(task_id))["status"] == "processing"
    assert (await slow_broker.wait_end(task_id))["status"] == "completed"


@pytest.mark.parametrize("url", [PRIVATE, "http://127.0.0.1:1/x.png", "file:///etc/passwd", "http://[::1]/x.png"])
async def test_12_an_address_from_a_callback_is_never_fetched_unguarded(slow_broker: RunningBroker, url: str) -> None:
    task_id = await slow_broker.create_task("a red bicycle [mood:slow:60]")
    (job,) = await submitted(slow_broker)
    assert (
        await call_back(slow_broker, task_id, market_body(job["taskId"], resultJson=results(url)))
    ).status_code == 200
    data = (
        await slow_broker.wait_end(task_id, seconds=30)
        if url.startswith("http")
        else await slow_broker.get_task(task_id)
    )
    assert data["results"] == []
    assert (data["errorDetail"] or {}).get("code") in {None, "invalid_result"}


async def test_13_the_provider_does_not_wait_for_our_download(slow_broker: RunningBroker) -> None:
    """The image takes two seconds to come, the answer to the callback does not."""
    task_id = await slow_broker.create_task("a red bicycle [mood:drip:2]")
    await slow_broker.wait_end(task_id)
    (job,) = await slow_broker.provider_jobs()
    (call,) = job["callbacks"]
    task = await slow_broker.services.queries.get(task_id, EVERYTHING)
    assert call["status"] == 200
    assert task.ended_at is not None
    assert task.ended_at - call["at"] > 1


async def test_14_a_late_processing_does_not_overwrite_completed(broker: RunningBroker) -> None:
    task_id = await broker.create_task("a red bicycle [mood:disorder]")
    data = await broker.wait_end(task_id)
    (job,) = await broker.provider_jobs()
    late = {"code": 200, "msg": "", "data": {"taskId": job["taskId"], "state": "generating"}}
    assert (await call_back(broker, task_id, late)).status_code == 200
    await wait_processed(broker)
    assert await broker.get_task(task_id) == data


async def test_15_a_download_that_fails_is_tried_again(broker: RunningBroker) -> None:
    data = await broker.wait_end(await broker.create_task("a red bicycle [mood:truncated:2]"))
    assert data["status"] == "completed"


async def test_16_all_results_are_kept(broker: RunningBroker) -> None:
    data = await broker.wait_end(await broker.create_task("a red bicycle [mood:multi:3]"))
    assert len({result["url"] for result in data["results"]}) == 3


@pytest.mark.parametrize(
    ("name", "media_type", "content"),
    [
        ("x.html", "image/png", b"<!doctype html><script>alert(1)</script>"),
        ("x.svg", "image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
        ("x.png", "image/png", b"GIF89a" + b"\0" * 50),
    ],
)
async def test_17_an_upload_is_what_its_bytes_are(
    broker: RunningBroker, name: str, media_type: str, content: bytes
) -> None:
    answer = await broker.client.post(
        "/api/generate/image", data={"prompt": "x"}, files={"image": (name, content, media_type)}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image")


async def test_17_the_name_of_an_upload_means_nothing(broker: RunningBroker) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    answer = await broker.client.post(
        "/api/generate/image",
        data={"prompt": "x"},
        files={"image": ("../../evil.html", buffer.getvalue(), "text/html")},
    )
    task = await broker.services.queries.get(answer.json()["taskId"], EVERYTHING)
    served = await broker.client.get(f"/uploads/references/{task.references[0]['name']}")
    assert re.fullmatch(r"reference_[0-9a-f]{43}\.jpg", task.references[0]["name"])
    assert served.headers["content-type"] == "image/jpeg"
    assert served.headers["x-content-type-options"] == "nosniff"


async def test_18_a_refused_request_leaves_nothing_behind(broker: RunningBroker, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    files = [("image", ("a.png", buffer.getvalue())), ("image", ("b.png", b"not an image"))]
    answer = await broker.client.post("/api/generate/image", data={"prompt": "x"}, files=files)
    assert answer.status_code == 400
    assert (await broker.client.get("/api/tasks")).json()["data"] == []
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


async def test_19_ids_cannot_be_guessed(broker: RunningBroker) -> None:
    ids = {await broker.create_task("a red bicycle") for _ in range(20)}
    assert all(re.fullmatch(r"task_[0-9a-f]{43}", task_id) for task_id in ids)
    assert len({task_id[16:24] for task_id in ids}) == 20  # what follows the moment


async def test_20_references_go_to_the_model_that_edits_and_what_is_unused_is_said(broker: RunningBroker) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    answer = await broker.client.post(
        "/api/generate/image",
        data={"prompt": "x", "model": "nano-banana", "mode": "image-to-image", "steps": "30"},
        files={"image": ("a.png", buffer.getvalue())},
    )
    assert answer.json()["ignored"] == ["steps"]
    assert (await broker.wait_end(answer.json()["taskId"]))["status"] == "completed"
    (job,) = await broker.provider_jobs()
    assert job["request"]["model"] == "google/nano-banana-edit"
    assert len(job["request"]["input"]["image_urls"]) == 1


async def test_a_trusted_caller_can_simulate_a_callback_in_the_older_dialect(slow_broker: RunningBroker) -> None:
    """`{"task_id": ours, "status", "output": {"image_url"}}` from this machine, as in the old recipes."""
    donor = await slow_broker.create_task("a blue bicycle")
    await slow_broker.wait_end(donor)
    task_id = await slow_broker.create_task("a red bicycle [mood:slow:60]")
    await submitted(slow_broker, 2)
    body = {"task_id": task_id, "status": "completed", "output": {"image_url": await result_url(slow_broker, donor)}}
    answer = await slow_broker.client.post("/api/webhook/nano-banana", json=body)
    assert answer.status_code == 200
    assert (await slow_broker.wait_end(task_id))["status"] == "completed"
