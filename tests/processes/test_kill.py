"""kill -9 of the whole process at each step of a task's life, then a restart: the task ends right, ordered once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.process import Broker, environment, free_port, serving, until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[str]:
    """The other side outlives us: it keeps what it accepted, and calls until the callback is answered."""
    options = Options(duration=0.3, callback_spacing=0.5, callback_retries=60, creates_per_window=10_000)
    async with serve_sandbox(options=options) as base:
        yield base


async def order(broker: Broker, prompt: str) -> str:
    answer = await broker.client.post("/api/generate/image", json={"prompt": prompt})
    assert answer.status_code == 202, answer.text
    task_id: str = answer.json()["taskId"]
    return task_id


async def look(broker: Broker, task_id: str) -> dict[str, Any]:
    data: dict[str, Any] = (await broker.client.get(f"/api/task/{task_id}")).json()["data"]
    return data


async def end(broker: Broker, task_id: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            answer = await broker.client.get(f"/api/task/{task_id}", params={"wait": "2"})
            data: dict[str, Any] = answer.json()["data"]
            if data["status"] in {"completed", "failed", "canceled"}:
                return data


async def jobs(sandbox: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(verify=False) as client:
        found: list[dict[str, Any]] = (await client.get(f"{sandbox}/sandbox/jobs")).json()["jobs"]
        return found


async def killed_and_restarted(
    tmp_path: Path, sandbox: str, prompt: str, moment: Callable[[Broker, str], Awaitable[None]], **env: str
) -> dict[str, Any]:
    """Order, kill at the moment, start again, wait for the end."""
    variables = environment(tmp_path, sandbox, free_port(), **env)
    async with serving(variables, tmp_path) as broker:
        task_id = await order(broker, prompt)
        await moment(broker, task_id)
        await broker.kill()
    async with serving(variables, tmp_path) as broker:
        data = await end(broker, task_id)
        if data["status"] == "completed":
            image = await broker.client.get(data["result"])
            assert (image.status_code, len(image.content)) == (200, data["results"][0]["bytes"])
    return data


@pytest.mark.faults
async def test_kill_after_the_create_response_keeps_the_task(tmp_path: Path, sandbox: str) -> None:
    async def at_once(broker: Broker, task_id: str) -> None:
        pass

    data = await killed_and_restarted(tmp_path, sandbox, "a red bicycle [mood:slow:2]", at_once)
    made = await jobs(sandbox)
    assert (data["status"], len(made)) in {("completed", 1), ("failed", 0)}
    if data["status"] == "failed":  # it died between the intent and the first byte of the request
        assert data["errorDetail"]["code"] == "unknown_outcome"


@pytest.mark.faults
async def test_kill_while_queued_keeps_the_task(tmp_path: Path, sandbox: str) -> None:
    """One place at the provider, taken by another task: this one is certainly not submitted yet."""
    variables = environment(tmp_path, sandbox, free_port(), MAX_CONCURRENT_GENERATIONS="1")
    async with serving(variables, tmp_path) as broker:
        first = await order(broker, "first [mood:slow:2]")
        await until(lambda: _has_jobs(sandbox, 1))
        second = await order(broker, "second")
        assert (await look(broker, second))["status"] == "pending"
        await broker.kill()
    async with serving(variables, tmp_path) as broker:
        assert (await end(broker, first))["status"] == "completed"
        assert (await end(broker, second))["status"] == "completed"
    assert len(await jobs(sandbox)) == 2


async def _has_jobs(sandbox: str, count: int) -> bool:
    return len(await jobs(sandbox)) >= count


async def test_kill_before_the_job_id_is_known_submits_once(tmp_path: Path, sandbox: str) -> None:
    """The job's id was never received; the callback's token binds it to the task."""

    async def accepted(broker: Broker, task_id: str) -> None:
        await until(lambda: _has_jobs(sandbox, 1))

    prompt = "a red bicycle [mood:slow_answer:30][mood:slow:1]"
    restarts_in_time = {"BROKER_TASK_DEADLINE_SECONDS": "40"}  # also on a machine with much else to do
    data = await killed_and_restarted(tmp_path, sandbox, prompt, accepted, **restarts_in_time)
    assert (data["status"], len(await jobs(sandbox))) == ("completed", 1)


@pytest.mark.parametrize("resubmit", [False, pytest.param(True, marks=pytest.mark.faults)])
async def test_kill_during_an_unaccepted_submission_is_an_unknown_outcome(
    tmp_path: Path, sandbox: str, resubmit: bool
) -> None:
    """The request was sent and not accepted: it is repeated only if the operator says so."""
    arrived = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"createTask" in await reader.readline():  # the balance is requested too, at start
            arrived.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as hole:
        dead_end = f"http://127.0.0.1:{hole.sockets[0].getsockname()[1]}"
        port = free_port()
        env = {"BROKER_RESUBMIT_UNKNOWN": str(resubmit).lower(), "BROKER_TASK_DEADLINE_SECONDS": "3"}
        async with serving(environment(tmp_path, dead_end, port, **env), tmp_path) as broker:
            task_id = await order(broker, "a red bicycle")
            await asyncio.wait_for(arrived.wait(), 20)
            await broker.kill()
    async with serving(environment(tmp_path, sandbox, port, **env), tmp_path) as broker:
        data = await end(broker, task_id)
    if resubmit:
        assert (data["status"], len(await jobs(sandbox))) == ("completed", 1)
    else:
        assert (data["errorDetail"]["code"], len(await jobs(sandbox))) == ("unknown_outcome", 0)


@pytest.mark.faults
@pytest.mark.parametrize("resubmit", [False, True])
async def test_kill_while_a_provider_holds_the_call_is_an_unknown_outcome(tmp_path: Path, resubmit: bool) -> None:
    """Nothing leads to the image any more. The order is repeated only if the operator says so, and then once."""
    async with serve_sandbox(options=Options(dialect="gemini", duration=1.0)) as gemini:
        env = {"GEMINI_API_KEY": "key", "GEMINI_BASE_URL": gemini, "BROKER_PROVIDERS": "gemini"}

        async def accepted(broker: Broker, task_id: str) -> None:
            await until(lambda: _has_jobs(gemini, 1))

        more = {"BROKER_RESUBMIT_UNKNOWN": str(resubmit).lower(), **env}
        data = await killed_and_restarted(tmp_path, gemini, "a red bicycle", accepted, **more)
        made = len(await jobs(gemini))
    if resubmit:
        assert (data["status"], made) == ("completed", 2)
    else:
        assert (data["status"], data["errorDetail"]["code"], made) == ("failed", "unknown_outcome", 1)


@pytest.mark.faults
async def test_kill_after_the_acknowledged_callback_keeps_its_result(tmp_path: Path, sandbox: str) -> None:
    """The provider will not call again; what it said is in the inbox."""

    async def acknowledged(broker: Broker, task_id: str) -> None:
        await until(_acknowledged)

    async def _acknowledged() -> bool:
        return any(call["status"] == 200 for job in await jobs(sandbox) for call in job["callbacks"])

    data = await killed_and_restarted(tmp_path, sandbox, "a red bicycle [mood:drip:2]", acknowledged)
    assert (data["status"], len(await jobs(sandbox))) == ("completed", 1)


@pytest.mark.faults
async def test_kill_during_a_download_repeats_the_download(tmp_path: Path, sandbox: str) -> None:
    drafts = tmp_path / "data" / "blobs" / ".drafts"

    async def downloading(broker: Broker, task_id: str) -> None:
        async def begun() -> bool:
            return drafts.is_dir() and any(path.stat().st_size > 1_000_000 for path in drafts.iterdir())

        await until(begun)

    data = await killed_and_restarted(tmp_path, sandbox, "a red bicycle [mood:big:8][mood:drip:3]", downloading)
    assert (data["status"], len(await jobs(sandbox))) == ("completed", 1)


@pytest.mark.faults
async def test_kill_before_the_final_commit_keeps_both_images(tmp_path: Path, sandbox: str) -> None:
    """One of two images is stored for good, the other is still on its way."""

    async def one_stored(broker: Broker, task_id: str) -> None:
        async def stored() -> bool:
            return any(path.is_file() for path in (tmp_path / "data" / "blobs").rglob(f"{task_id}.*"))

        await until(stored)

    prompt = "a red bicycle [mood:multi:2][mood:gone_once:2]"
    data = await killed_and_restarted(tmp_path, sandbox, prompt, one_stored)
    assert (data["status"], len(data["results"]), len(await jobs(sandbox))) == ("completed", 2, 1)


@pytest.mark.faults
async def test_repeated_kills_under_load_end_every_task_once(tmp_path: Path, sandbox: str) -> None:
    """40 tasks, five kills at odd moments: every accepted order ends, none is ordered twice."""
    variables = environment(tmp_path, sandbox, free_port())
    ids: list[str] = []
    for life in range(5):
        async with serving(variables, tmp_path) as broker:
            ids += await asyncio.gather(*(order(broker, f"picture {life}-{n}") for n in range(8)))
            await asyncio.sleep(0.15 * life)
            await broker.kill()
    async with serving(variables, tmp_path) as broker:
        ends = [await end(broker, task_id) for task_id in ids]
    made = await jobs(sandbox)
    prompts = [job["request"]["input"]["prompt"] for job in made]
    assert len(prompts) == len(set(prompts))
    assert len(ends) == 40
    for data in ends:
        assert data["status"] == "completed" or data["errorDetail"]["code"] == "unknown_outcome", data


async def test_sigterm_drains_within_ten_seconds_and_the_next_process_goes_on(tmp_path: Path, sandbox: str) -> None:
    variables = environment(tmp_path, sandbox, free_port())
    async with serving(variables, tmp_path) as broker:
        ids = await asyncio.gather(*(order(broker, f"picture {n} [mood:slow:1]") for n in range(10)))
        waiting = asyncio.ensure_future(broker.client.get(f"/api/task/{ids[0]}", params={"wait": "25"}))
        await until(lambda: _has_jobs(sandbox, 10))
        async with asyncio.timeout(10):
            assert await broker.stop() == 0
        assert (await waiting).status_code == 200
    async with serving(variables, tmp_path) as broker:
        ends = [await end(broker, task_id) for task_id in ids]
    assert [data["status"] for data in ends] == ["completed"] * 10
    assert len(await jobs(sandbox)) == 10
