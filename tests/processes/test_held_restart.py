"""A held answer survives the end of its broker: the client sends the same request again, and gets the same order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.process import environment, free_port, serving, until

pytestmark = pytest.mark.anyio

MARKED = ({"X-Stainless-Retry-Count": "0"}, {"X-Stainless-Retry-Count": "1"})
UNMARKED: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})


async def accepted_jobs(sandbox: str) -> int:
    async with httpx.AsyncClient() as client:
        return len((await client.get(f"{sandbox}/sandbox/jobs")).json()["jobs"])


@pytest.mark.parametrize(
    ("end", "headers"),
    [
        pytest.param("kill", MARKED, id="kill-marked"),
        pytest.param("kill", UNMARKED, marks=pytest.mark.faults, id="kill-unmarked"),
        pytest.param("stop", UNMARKED, marks=pytest.mark.faults, id="stop-unmarked"),
    ],
)
async def test_the_same_request_gets_the_same_order_after_a_restart(
    tmp_path: Path, end: str, headers: tuple[Mapping[str, str], Mapping[str, str]]
) -> None:
    """Without the mark of an SDK it takes some seconds until the broker is certain that the one before is dead."""
    first, again = headers
    order = {"prompt": "a red fox", "model": "nano-banana"}
    async with serve_sandbox(options=Options(duration=1.5)) as sandbox:
        env = environment(tmp_path, sandbox, free_port())
        async with serving(env, tmp_path) as broker:
            waiting = asyncio.create_task(broker.client.post("/generate", json=order, headers=first))

            async def is_ordered() -> bool:
                """Return whether the answer of the provider is stored: killed before, its outcome would be unknown."""
                tasks = (await broker.client.get("/api/tasks")).json()["data"]
                return [task["progress"]["stage"] for task in tasks] == ["waiting"]

            await until(is_ordered)
            await (broker.kill() if end == "kill" else broker.stop())
            if end == "kill":
                with pytest.raises(httpx.HTTPError):
                    await waiting
            else:
                assert (await waiting).status_code == 503
        async with serving(env, tmp_path) as broker:
            answer = await broker.client.post("/generate", json=order, headers=again)
        assert answer.status_code == 200, answer.text
        assert len(answer.json().get("images", [])) == 1, answer.text
        assert await accepted_jobs(sandbox) == 1
