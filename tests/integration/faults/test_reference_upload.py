"""Faulty file host of a provider: references are uploaded before anything is submitted, so a failure costs nothing."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest

from tests.contracts.providers import Canned, Upstream
from tests.support.api import png
from tests.support.brokers import RunningBroker, open_broker

pytestmark = pytest.mark.anyio

REFUSED = Canned(body={"success": False, "code": 400, "msg": "no"})


async def order_with_reference(broker: RunningBroker) -> dict[str, object]:
    """Order an image that needs a reference; return the task at its end."""
    image = "data:image/png;base64," + base64.b64encode(png("red")).decode()
    return await broker.wait_end(
        await broker.create_task("a red bicycle", mode="image-to-image", images=[image]), seconds=10
    )


async def file_at_provider(broker: RunningBroker) -> str:
    """Return the URL of a reference that the provider can read."""
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.post(
            f"{broker.sandbox}/api/file-stream-upload",
            files={"file": ("red.png", png("red"))},
            data={"uploadPath": "references"},
            headers={"Authorization": "Bearer test-key"},
        )
    return str(answer.json()["data"]["downloadUrl"])


async def test_failed_upload_is_repeated_and_the_order_submitted_once(tmp_path: Path) -> None:
    async with (
        Upstream().open() as file_host,
        open_broker(tmp_path, with_callbacks=False, upload_url=file_host.url) as broker,
    ):
        uploaded = Canned(body={"success": True, "code": 200, "data": {"downloadUrl": await file_at_provider(broker)}})
        file_host.respond(Canned(status=502), Canned(hang_up=True), uploaded)
        task = await order_with_reference(broker)
        assert (task["status"], task["attempts"]) == ("completed", 1)
        assert len(file_host.received) == 3
        assert len(await broker.provider_jobs()) == 1


async def test_refused_upload_fails_the_task_and_submits_nothing(tmp_path: Path) -> None:
    async with (
        Upstream().open() as file_host,
        open_broker(tmp_path, with_callbacks=False, upload_url=file_host.url) as broker,
    ):
        file_host.respond(REFUSED)
        task = await order_with_reference(broker)
        assert (task["status"], task["attempts"]) == ("failed", 0)
        assert len(file_host.received) == 1
        assert await broker.provider_jobs() == []
