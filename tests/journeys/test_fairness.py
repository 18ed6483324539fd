"""A large order of one caller beside a single image of another, over real HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.sandbox.engine import Options
from tests.support.brokers import RunningBroker, open_broker

pytestmark = pytest.mark.anyio

LARGE, SINGLE = "key-of-the-large-order", "key-of-the-single-image"
IMAGES = 200 - 200 % 6
QUICK = Options(duration=0.01, callback_spacing=0.01, creates_per_window=10_000)


async def order(broker: RunningBroker, key: str, prompt: str, count: int = 1, **fields: Any) -> list[str]:
    """Order images and return their task ids."""
    body = {"prompt": prompt, "numberOfImages": count, **fields}
    answer = await broker.client.post("/api/generate/image", json=body, headers=bearer(key))
    assert answer.status_code == 202, answer.text
    task_ids: list[str] = answer.json()["taskIds"]
    return task_ids


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_large_order_delays_the_image_of_another_caller_by_one_turn_at_most(tmp_path: Path) -> None:
    async with open_broker(tmp_path, api_keys=(LARGE, SINGLE), max_concurrent=1, options=QUICK) as broker:
        for task_id in await order(broker, SINGLE, "the first ones", 6):  # so the other caller has waited longer
            await broker.wait_end(task_id)
        before = len(await broker.provider_jobs())
        paused = await broker.client.post("/api/providers/kie/pause", headers=bearer(LARGE))
        assert paused.json()["data"]["paused"] is True
        batch = [task_id for _ in range(IMAGES // 6) for task_id in await order(broker, LARGE, "one of many", 6)]
        late = (await order(broker, LARGE, "urgent for its caller", priority="high"))[0]
        (single,) = await order(broker, SINGLE, "a single image")

        several = {"urgent": late, "single": single, "first": batch[0], "last": batch[-1]}
        positions = {name: (await broker.get_task(one))["progress"]["position"] for name, one in several.items()}
        assert positions == {"urgent": 1, "single": 2, "first": 3, "last": IMAGES + 2}, "high priority, then in turns"

        await broker.client.post("/api/providers/kie/resume", headers=bearer(LARGE))
        assert (await broker.wait_end(single))["status"] == "completed"
        prompts = [job["prompt"] for job in (await broker.provider_jobs())[before:]]
        assert prompts[:2] == ["urgent for its caller", "a single image"]
