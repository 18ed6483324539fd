"""BananaService (S1): answers, images in the request, limits, and errors."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.sandbox.engine import Options
from tests.support.brokers import RunningBroker, open_broker
from tests.support.samples import encoded

pytestmark = pytest.mark.anyio

QUICK = Options(duration=0, callback_spacing=0, creates_per_window=1000)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with open_broker(tmp_path, options=QUICK, task_deadline=20) as broker:
        yield broker


async def generate(broker: RunningBroker, **body: Any) -> httpx.Response:
    return await broker.client.post("/generate", json={"prompt": "a red fox", **body})


async def test_answer_is_that_of_the_original(broker: RunningBroker) -> None:
    """S1-08, S1-09: the default model, and a model by the name that Google has for it."""
    for body, model in (({}, "nano-banana-pro"), ({"model": "gemini-2.5-flash-image"}, "nano-banana")):
        answer = await generate(broker, **body)
        assert (answer.status_code, set(answer.json())) == (200, {"images", "metadata"}), answer.text
        assert answer.json()["metadata"] is None
        task = await broker.get_task(answer.headers["x-request-id"])
        assert (task["model"], task["mode"]) == (model, "text-to-image")
        (image,) = answer.json()["images"]
        assert base64.b64decode(image, validate=True) == (await broker.client.get(task["result"])).content


async def test_image_is_taken_as_base64_and_as_a_data_uri(broker: RunningBroker) -> None:
    text = base64.b64encode(encoded("JPEG")).decode()
    for image in (text, f"data:image/jpeg;base64,{text}"):
        answer = await generate(broker, image_base64=image)
        assert answer.status_code == 200, answer.text
        assert (await broker.get_task(answer.headers["x-request-id"]))["mode"] == "image-to-image"
    damaged = await generate(broker, image_base64="bm8gaW1hZ2U=")
    assert (damaged.status_code, list(damaged.json())) == (400, ["detail"])
    assert len(await broker.provider_jobs()) == 2


async def test_number_of_images(broker: RunningBroker) -> None:
    assert len((await generate(broker, number_of_images=3)).json()["images"]) == 3
    for number in (0, 11, -1, "many"):
        refused = await generate(broker, number_of_images=number)
        assert (refused.status_code, list(refused.json())) == (400, ["detail"]), number
    assert len(await broker.provider_jobs()) == 3


async def test_wrong_and_unknown_fields(broker: RunningBroker) -> None:
    for body in ({"prompt": None}, {"prompt": ""}, {"model": "sora"}, {"image_base64": 5}):
        refused = await generate(broker, **body)
        assert (refused.status_code, list(refused.json())) == (400, ["detail"]), body
    answer = await generate(broker, style="oil", number_of_images=None, image_base64=None)
    assert (answer.status_code, answer.headers["x-ignored"]) == (200, "style")


async def test_error_is_in_the_language_of_the_client(broker: RunningBroker) -> None:
    """S1-16."""
    for fields, words in (
        ({"prompt": ""}, "提示词无效"),
        ({"prompt": "a fox [mood:flagged]"}, "未通过服务商的安全审核"),
    ):
        answer = await broker.client.post("/generate", json=fields, headers={"Accept-Language": "zh-CN"})
        assert answer.status_code == 400
        assert words in answer.json()["detail"]


async def test_requests_beyond_the_rate_limit_are_429_and_health_is_not_counted(tmp_path: Path) -> None:
    """S1-04, S1-06."""
    async with open_broker(tmp_path, options=QUICK, rate_per_minute=2) as broker:
        statuses = [(await generate(broker)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        limited = await generate(broker)
        assert (list(limited.json()), int(limited.headers["retry-after"]) <= 60) == (["detail"], True)
        assert len(await broker.provider_jobs()) == 2
        health = (await broker.client.get("/health")).json()
        assert (health["status"], set(health)) == ("healthy", {"status", "version"})
