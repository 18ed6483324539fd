"""Turns of one conversation in two processes, of which one is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.process import Broker, environment, free_port, serving, until

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

WORDS = ("a red fox", "in snow", "at night", "from above")


async def say(broker: Broker, conversation: str, prompt: str) -> str:
    body = {"prompt": prompt, "conv_id": conversation}
    answer = await broker.client.post("/v1/generate", json=body, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


async def test_turns_go_on_in_order_when_the_process_that_took_them_is_killed(tmp_path: Path) -> None:
    async with serve_sandbox(options=Options(duration=1.0)) as sandbox:

        async def jobs() -> list[dict[str, Any]]:
            async with httpx.AsyncClient() as client:
                found: list[dict[str, Any]] = (await client.get(f"{sandbox}/sandbox/jobs")).json()["jobs"]
            return found

        first, second = (environment(tmp_path, sandbox, free_port()) for _ in range(2))
        async with serving(first, tmp_path) as one, serving(second, tmp_path) as two:
            conversation = (await one.client.post("/conversations")).json()["id"]
            tasks = [
                await say(broker, conversation, words) for broker, words in zip((one, two) * 2, WORDS, strict=True)
            ]

            async def is_ordered() -> bool:
                return len(await jobs()) == 1

            await until(is_ordered)
            await one.kill()

            async def has_ended() -> bool:
                answer = await two.client.get(f"/api/task/{tasks[-1]}")
                return bool(answer.json()["data"]["status"] == "completed")

            await until(has_ended)
            messages = (await two.client.get(f"/conversations/{conversation}/messages?images=url")).json()
            made = [(await two.client.get(one["images"][0])).content for one in messages[1::2]]
            found = await jobs()
            shown = [job["request"]["input"].get("image_urls", []) for job in found]
            assert [message["content"] for message in messages[::2]] == list(WORDS)
            assert [job["prompt"] for job in found] == list(WORDS)
            names = [url.rpartition("/")[2] for urls in shown for url in urls]
            sent = [(await two.client.get(f"/uploads/references/{name}")).content for name in names]
            assert sent == made[:-1]
