"""The same two orders at every provider: against its emulator, over real HTTP, by callback and by polling."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

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
    options = Options(dialect=dialect, api_key="key", duration=0.05, callback_spacing=0.05, creates_per_window=1000)
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


COMPLETED = (None, 1, 1)
"""Error code, jobs that the provider accepted, images."""
ENDS: Mapping[str, tuple[str | None, int, int]] = {
    **dict.fromkeys(("good", "early", "silent", "twice:3", "disorder", "forged", "unsigned", "stale"), COMPLETED),
    **dict.fromkeys(("lost][mood:grace:1", "lost][mood:unknown_state:1", "lost][mood:backwards"), COMPLETED),
    "truncated:1": COMPLETED,
    "multi:2": (None, 1, 2),
    "failed": ("no_image", 1, 0),
    "flagged": ("safety_input", 1, 0),
    "noresult": ("no_image", 1, 0),
    "status:422": ("provider_rejected", 0, 0),
}
"""Fewer than 20, which a provider may take in ten seconds."""
INTERNAL_ENDS: Mapping[str, tuple[str | None, int, int]] = {
    "replicate": ("provider_unavailable", 1, 0),
    "wavespeed": (None, 2, 1),
    "nanobananaapi": ("provider_error", 1, 0),
    "fal": (None, 2, 1),
}
"""After a failure that another attempt may cure: one is made only where the provider says that it billed nothing."""


@pytest.mark.parametrize("dialect", INTERNAL_ENDS)
async def test_every_order_ends_once_whatever_the_provider_does(tmp_path: Path, dialect: str) -> None:
    ends = {**ENDS, "internal": INTERNAL_ENDS[dialect]}
    # with a key of its own: a caller on this machine, which the emulator is, would be trusted otherwise
    own = {"api_keys": (SecretStr("our-key"),), "check_after": 0.5, "task_deadline": 15}
    async with broker_at(dialect, tmp_path, **own) as broker:
        broker.client.headers["Authorization"] = "Bearer our-key"
        tasks = {mood: await broker.create_task(f"a red fox [mood:{mood}]") for mood in ends}
        data = {mood: await broker.wait_end(task) for mood, task in tasks.items()}
        jobs = Counter(job["prompt"] for job in await broker.provider_jobs())
        document = (await broker.client.get(f"{broker.sandbox}/sandbox/jobs")).json()
    found = {
        mood: ((one["errorDetail"] or {}).get("code"), jobs[f"a red fox [mood:{mood}]"], len(one["results"]))
        for mood, one in data.items()
    }
    assert found == ends
    assert document["evilDownloads"] == 0


@pytest.mark.parametrize("dialect", ["replicate", "fal"])
async def test_canceled_order_is_canceled_at_the_provider(tmp_path: Path, dialect: str) -> None:
    async with broker_at(dialect, tmp_path, check_after=0.1) as broker:
        task = await broker.create_task("a red fox [mood:slow:60]")
        async for _ in broker.poll_task(task):
            if any(job["reads"] for job in await broker.provider_jobs()):  # its id is known
                break
        assert (await broker.client.delete(f"/api/task/{task}")).status_code == 200
        assert (await broker.wait_end(task))["status"] == "canceled"
        (job,) = await broker.provider_jobs()
        assert job["state"] == "fail"


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
