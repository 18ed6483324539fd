"""Memory of a broker while large images arrive at once, by download or within an answer: none is ever held whole."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.process import Broker, environment, free_port, serving

pytestmark = pytest.mark.anyio

IMAGE_MIB = 20
ALLOWED_MIB = 64
"""About three images; six are 120 MiB, and twenty 400 MiB."""


def memory(broker: Broker, field: str) -> float:
    """A line of the kernel's account of the process, in MiB."""
    status = Path(f"/proc/{broker.process.pid}/status").read_text("ascii")
    match = re.search(rf"{field}:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's account is read from /proc")
@pytest.mark.parametrize("images", [6, pytest.param(20, marks=pytest.mark.faults)])
async def test_large_images_at_once_stay_on_the_disk(tmp_path: Path, images: int) -> None:
    async with serve_sandbox(options=Options(duration=0.5)) as sandbox:
        env = environment(tmp_path, sandbox, free_port(), BROKER_TASK_DEADLINE_SECONDS="120")
        async with serving(env, tmp_path) as broker:
            idle = memory(broker, "VmRSS")
            prompt = f"noise [mood:big:{IMAGE_MIB}]"
            ids = await asyncio.gather(*(_ordered(broker, prompt) for _ in range(images)))
            sizes = await asyncio.gather(*(_size(broker, task_id) for task_id in ids))
            peak = memory(broker, "VmHWM")
    assert all(size >= IMAGE_MIB * 2**20 for size in sizes)
    assert peak - idle < ALLOWED_MIB, f"idle {idle:.0f} MiB, peak {peak:.0f} MiB"


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's account is read from /proc")
@pytest.mark.parametrize("images", [1, 4])
async def test_large_images_within_answers_go_to_the_disk_while_they_arrive(tmp_path: Path, images: int) -> None:
    """An answer of Gemini with an image of 40 MiB is a JSON document of 53 MiB."""
    async with serve_sandbox(options=Options(dialect="gemini", duration=0.5)) as sandbox:
        gemini = {"GEMINI_API_KEY": "key", "GEMINI_BASE_URL": sandbox, "BROKER_PROVIDERS": "gemini"}
        env = environment(tmp_path, sandbox, free_port(), BROKER_TASK_DEADLINE_SECONDS="120", **gemini)
        async with serving(env, tmp_path) as broker:
            idle = memory(broker, "VmRSS")
            ids = await asyncio.gather(*(_ordered(broker, "noise [mood:big:40]") for _ in range(images)))
            sizes = await asyncio.gather(*(_size(broker, task_id) for task_id in ids))
            peak = memory(broker, "VmHWM")
    assert all(size >= 40 * 2**20 for size in sizes)
    assert peak - idle < ALLOWED_MIB, f"idle {idle:.0f} MiB, peak {peak:.0f} MiB"


async def _ordered(broker: Broker, prompt: str) -> str:
    answer = await broker.client.post("/api/generate/image", json={"prompt": prompt})
    task_id: str = answer.json()["taskId"]
    return task_id


async def _size(broker: Broker, task_id: str) -> int:
    async with asyncio.timeout(90):
        while True:
            answer = await broker.client.get(f"/api/task/{task_id}", params={"wait": "25"})
            data = answer.json()["data"]
            if data["status"] == "completed":
                return int(data["results"][0]["bytes"])
            assert data["status"] in {"pending", "processing"}, data
