"""The same two orders at every provider: against its emulator, over real HTTP, by callback and by polling."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.brokers import RunningBroker, open_broker

pytestmark = pytest.mark.anyio

WIDE_2K = {"model": "nano-banana-2", "aspectRatio": "16:9", "resolution": "2K"}
EDIT = {"model": "nano-banana-pro", "aspectRatio": "3:2"}


SETTINGS: Mapping[str, Callable[[str], Mapping[str, Any]]] = {
    "kie": lambda url: {"kie_keys": "key", "api_url": url, "upload_url": url},
    "replicate": lambda url: {"replicate_tokens": "key", "replicate_url": f"{url}/v1"},
    "wavespeed": lambda url: {"wavespeed_keys": "key", "wavespeed_url": url},
    "nanobananaapi": lambda url: {"nanobananaapi_keys": "key", "nanobananaapi_url": f"{url}/api/v1/nanobanana"},
    "fal": lambda url: {"fal_keys": "key", "fal_url": url, "fal_rest_url": f"{url}/v1"},
}
"""By dialect: URL of its emulator → settings of the provider's package."""
SIGNED = ("replicate", "wavespeed", "fal")
"""Providers that sign every callback, with a secret or keys that the broker fetches."""
NEEDS_PUBLIC_URL = ("nanobananaapi",)
"""Providers without an upload of references: they fetch them from the broker, so its URL is known in every case."""


@asynccontextmanager
async def broker_at(dialect: str, folder: Path, **settings: Any) -> AsyncIterator[RunningBroker]:
    """Run a broker whose only provider is the emulator of a dialect."""
    options = Options(dialect=dialect, api_key="key", duration=0.05, callback_spacing=0.05, creates_per_window=100)
    async with serve_sandbox(options=options) as url:
        chosen = {"kie_keys": (), **SETTINGS[dialect](url), **settings}
        async with open_broker(folder, sandbox=url, **chosen) as broker:
            yield broker


@pytest.mark.parametrize("dialect", SETTINGS)
async def test_both_orders_complete_by_callback(tmp_path: Path, dialect: str) -> None:
    async with broker_at(dialect, tmp_path, check_after=30) as broker:
        await complete_both_orders(broker)
        jobs = await broker.provider_jobs()
    assert [[sent["status"] for sent in job["callbacks"]] for job in jobs] == [[200], [200]]
    assert [(job["reads"], job["downloads"]) for job in jobs] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("dialect", SETTINGS)
async def test_both_orders_complete_by_polling(tmp_path: Path, dialect: str) -> None:
    has_url = dialect in NEEDS_PUBLIC_URL
    async with broker_at(dialect, tmp_path, with_callbacks=has_url, check_after=0.1) as broker:
        await complete_both_orders(broker, " [mood:lost]")
        jobs = await broker.provider_jobs()
    assert [(len(job["callbacks"]), job["reads"] > 0, job["downloads"]) for job in jobs] == [(0, True, 1)] * 2


@pytest.mark.parametrize("dialect", SIGNED)
async def test_callback_with_a_wrong_signature_is_rejected_despite_its_token(tmp_path: Path, dialect: str) -> None:
    async with broker_at(dialect, tmp_path, check_after=0.1) as broker:
        data = await broker.wait_end(await broker.create_task("a red fox [mood:badsign]"))
        (job,) = await broker.provider_jobs()
    assert (data["status"], {sent["status"] for sent in job["callbacks"]}) == ("completed", {401})


async def complete_both_orders(broker: RunningBroker, mood: str = "") -> None:
    """Order an image from text, and one from two references; assert that both are stored in their sizes."""
    wide = await broker.create_task(f"a red fox{mood}", **WIDE_2K)
    edit = await broker.create_task(f"both in a hat{mood}", images=[data_uri("red"), data_uri("blue")], **EDIT)
    await assert_image(broker, wide, (2752, 1536))
    await assert_image(broker, edit, (1264, 848))


async def assert_image(broker: RunningBroker, task_id: str, size: tuple[int, int]) -> None:
    data = await broker.wait_end(task_id)
    assert data["status"] == "completed", data
    answer = await broker.client.get(data["result"])
    with Image.open(io.BytesIO(answer.content)) as image:
        image.load()
        assert image.size == size


def data_uri(colour: str) -> str:
    out = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(out, "png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
