"""The dialect of the image service: generate, status, list, delete, and the example of its documentation."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.sandbox.engine import Options
from tests.support.api import png
from tests.support.brokers import RunningBroker, open_broker

pytestmark = pytest.mark.anyio

QUICK = Options(duration=0.05, callback_spacing=0.05, creates_per_window=10_000)
SLOW = Options(duration=20, callback_spacing=0.05, creates_per_window=10_000)
GENERATE = "/api/v1/images/generate"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with open_broker(tmp_path, options=QUICK) as running:
        yield running


async def generate(broker: RunningBroker, **fields: Any) -> str:
    answer = await broker.client.post(GENERATE, json={"prompt": "a red fox", **fields})
    assert answer.status_code == 200, answer.text
    image_id: str = answer.json()["image_id"]
    return image_id


async def wait_image(broker: RunningBroker, image_id: str) -> dict[str, Any]:
    """Poll as the clients do; assert that only the statuses of the original are seen."""
    async with asyncio.timeout(10):
        while True:
            answer = await broker.client.get(f"/api/v1/images/status/{image_id}")
            image: dict[str, Any] = answer.json()
            assert image["status"] in {"pending", "running", "completed", "failed"}, answer.text
            if image["status"] in {"completed", "failed"}:
                return image
            await asyncio.sleep(0.02)


async def test_order_is_pending_at_first_and_completed_with_an_address_at_last(broker: RunningBroker) -> None:
    unused = {"negative_prompt": "a dog", "num_inference_steps": 50, "guidance_scale": 7.5, "api_key": "r8_secret"}
    order = {"prompt": "a red fox", "resolution": "2K", "aspect_ratio": "16:9", "generation_mode": "text-to-image"}
    answer = await broker.client.post(GENERATE, json={**order, **unused})
    accepted = answer.json()
    assert (answer.status_code, accepted["status"], accepted["image_url"]) == (200, "pending", None)
    assert set(answer.headers["x-ignored"].split(", ")) == set(unused)
    image = await wait_image(broker, accepted["image_id"])
    assert (image["status"], image["resolution"], image["aspect_ratio"]) == ("completed", "2K", "16:9")
    assert (image["model_name"], image["generation_mode"]) == ("nano-banana-pro", "text-to-image")
    assert (await broker.client.get(image["result_url"])).headers["content-type"] == "image/png"
    assert [image["image_url"], *image["image_urls"]] == [image["result_url"]] * 2
    assert image["error_message"] is None
    task = await broker.services.tables.tasks.get(image["id"])
    assert task is not None
    assert "r8_secret" not in repr(vars(task))


async def test_reference_images_are_addresses_data_uris_and_base64(broker: RunningBroker) -> None:
    encoded = base64.b64encode(png()).decode()
    first = await wait_image(broker, await generate(broker))
    references = [encoded, f"data:image/png;base64,{encoded}", first["result_url"]]
    image = await wait_image(broker, await generate(broker, reference_images=references, seed=5))
    assert (image["status"], image["generation_mode"]) == ("completed", "image-to-image")
    request = (await broker.provider_jobs())[-1]["request"]
    assert len(request["input"]["image_input"]) == 3
    lenient = {"reference_images": [encoded], "generation_mode": "text-to-image"}
    assert (await wait_image(broker, await generate(broker, **lenient)))["generation_mode"] == "image-to-image"


async def test_errors_have_a_detail_and_failures_a_message(broker: RunningBroker) -> None:
    wrong: list[dict[str, Any]] = [
        {"prompt": ""},
        {"prompt": "a fox", "resolution": "9K"},
        {"prompt": "a fox", "model_name": "no-such-model"},
        {"prompt": "a fox", "generation_mode": "image-to-image"},
        {"prompt": "a fox", "generation_mode": "video"},
        {"prompt": "a fox", "reference_images": ["no base64"]},
        {"resolution": "1K"},
    ]
    for body in wrong:
        answer = await broker.client.post(GENERATE, json=body)
        assert (answer.status_code, list(answer.json())) == (400, ["detail"]), body
    assert await broker.provider_jobs() == []
    unknown = await broker.client.get(f"/api/v1/images/status/task_{0:043x}")
    assert (unknown.status_code, list(unknown.json())) == (404, ["detail"])
    failed = await wait_image(broker, await generate(broker, prompt="a fox [mood:flagged]"))
    assert (failed["status"], failed["result_url"]) == ("failed", None)
    assert "safety" in failed["error_message"]


async def test_list_has_pages_and_a_deleted_image_is_gone(broker: RunningBroker) -> None:
    ids = [await generate(broker, prompt=f"fox {number}") for number in range(3)]
    images = [await wait_image(broker, image_id) for image_id in ids]
    page = (await broker.client.get("/api/v1/images/list", params={"limit": 2, "offset": 1})).json()
    assert [one["id"] for one in page["generations"]] == [ids[1], ids[0]]
    assert page["meta"] == {"shown": 2, "limit": 2, "offset": 1, "has_more": False}
    deleted = await broker.client.delete(f"/api/v1/images/{ids[1]}")
    assert (deleted.status_code, deleted.json()["image_id"]) == (200, ids[1])
    assert (await broker.client.get(images[1]["result_url"])).status_code == 404
    assert (await broker.client.get(f"/api/v1/images/status/{ids[1]}")).status_code == 410
    listed = (await broker.client.get("/api/v1/images/list")).json()
    assert [one["id"] for one in listed["generations"]] == [ids[2], ids[0]]
    wrong = await broker.client.get("/api/v1/images/list", params={"offset": "-1"})
    assert (wrong.status_code, list(wrong.json())) == (400, ["detail"])


async def test_running_image_is_canceled_by_its_deletion(tmp_path: Path) -> None:
    async with open_broker(tmp_path, options=SLOW, task_deadline=30) as broker:
        image_id = await generate(broker)
        canceled = await broker.client.delete(f"/api/v1/images/{image_id}", headers={"Accept-Language": "ru"})
        assert (canceled.status_code, canceled.json()["message"]) == (200, "Задача отменена.")
        assert (await wait_image(broker, image_id))["status"] == "failed"
        assert (await broker.client.delete(f"/api/v1/images/{image_id}")).status_code == 200
        assert (await broker.client.delete(f"/api/v1/images/{image_id}")).status_code == 410
