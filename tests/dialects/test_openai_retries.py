"""Retries of the openai SDK make one order: the answer is cut off or late, or the broker is killed in between."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.dialects.openai_sdk import broker_in, call, picture, sdk_for, size_of
from tests.support.cutting_proxy import cutting_proxy
from tests.support.process import environment, free_port, serving, until

pytestmark = pytest.mark.anyio


def generate(client: OpenAI) -> tuple[int, int]:
    made = client.images.generate(model="gpt-image-2", prompt="a red fox")
    assert made.data is not None
    return size_of(made.data[0].b64_json)


def edit(client: OpenAI) -> tuple[int, int]:
    made = client.images.edit(model="gpt-image-2", prompt="in blue", image=picture())
    assert made.data is not None
    return size_of(made.data[0].b64_json)


def chat(client: OpenAI) -> tuple[int, int]:
    completion = client.chat.completions.create(
        model="gpt-image-2",
        messages=[{"role": "user", "content": "a fox by chat"}],
        extra_body={"modalities": ["image"]},
    )
    message: Any = completion.choices[0].message
    return size_of(message.images[0]["image_url"]["url"].partition(",")[2])


async def test_answer_that_is_cut_off_is_sent_again(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:

        async def use_cut(client_call: Any) -> tuple[int, int]:
            async with cutting_proxy(broker.client.base_url.port or 0, 2000) as port:
                return await call(sdk_for(f"http://127.0.0.1:{port}", max_retries=2), client_call)

        made = await asyncio.gather(*(use_cut(use) for use in (generate, edit, chat)))
        assert made == [(1024, 1024)] * 3
        assert len(await broker.provider_jobs()) == 3


async def test_answer_that_is_late_is_waited_for_by_the_retry(tmp_path: Path) -> None:
    async with broker_in(tmp_path, duration=0.7) as broker:
        made = await asyncio.gather(
            *(call(sdk_for(broker, max_retries=5, timeout=0.4), use) for use in (generate, edit))
        )
        assert made == [(1024, 1024)] * 2
        assert len(await broker.provider_jobs()) == 2


@pytest.mark.faults
async def test_broker_that_is_killed_answers_the_retry_after_its_restart(tmp_path: Path) -> None:
    options = Options(duration=1.5, callback_spacing=0.05, creates_per_window=1000)
    async with serve_sandbox(options=options) as sandbox:
        variables = environment(tmp_path, sandbox, free_port())
        base_url = f"http://127.0.0.1:{variables['BROKER_PORT']}"

        async def jobs() -> list[Any]:
            async with httpx.AsyncClient() as client:
                found: list[Any] = (await client.get(f"{sandbox}/sandbox/jobs")).json()["jobs"]
                return found

        async with serving(variables, tmp_path) as broker:

            async def is_submitted() -> bool:
                tasks = (await broker.client.get("/api/tasks")).json()["data"]
                return [task["progress"]["stage"] for task in tasks] == ["waiting"]

            waiting = asyncio.create_task(call(sdk_for(base_url, max_retries=8), generate))
            await until(is_submitted)
            await broker.kill()
        async with serving(variables, tmp_path):
            assert await waiting == (1024, 1024)
        assert len(await jobs()) == 1


async def test_stream_that_its_client_leaves_or_that_takes_too_long_goes_on_as_the_same_order(tmp_path: Path) -> None:
    async with broker_in(tmp_path, duration=0.5, hold=0.3) as broker:
        body = {"prompt": "a red fox", "stream": True}
        async with broker.client.stream("POST", "/v1/images/generations", json=body) as left:
            task = left.headers["x-request-id"]
            assert left.headers["content-type"].startswith("text/event-stream")
        late = await broker.client.post("/v1/images/generations", json=body)
        assert (late.headers["x-request-id"], late.status_code) == (task, 200)
        (event,) = late.text.strip().split("\n\n")
        assert json.loads(event.removeprefix("data: "))["error"]["code"] == "unavailable", "BROKER_HOLD_SECONDS is over"
        await broker.wait_end(task)
        done = await broker.client.post("/v1/images/generations", json=body)
        assert (done.headers["x-request-id"], done.text.startswith("event: image_generation.completed\n")) == (
            task,
            True,
        )
        assert len(await broker.provider_jobs()) == 1
