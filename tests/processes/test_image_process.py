"""The child process for images of a real `broker serve`: killed during whole lives, and gone with its parent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.intake import is_running
from tests.support.planted_secrets import PLANTED, find_secrets
from tests.support.process import ROOT, Broker, environment, free_port, serving, until
from tests.support.servers.postgres import Postgres

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc"),
]

OPTIONS = Options(duration=0.2, callback_spacing=0.2, creates_per_window=10_000)
LIVES = 60


def image_processes(broker: Broker) -> list[int]:
    """Return the ids of the children that validate images."""
    found = []
    for parent in [broker.process.pid, *children(broker.process.pid)]:  # the second are the processes of a supervisor
        found += children(parent)
    return [pid for pid in found if b"uploads.process.child" in _read(pid, "cmdline")]


def children(parent: int) -> list[int]:
    found = []
    with suppress(OSError):
        for thread in Path(f"/proc/{parent}/task").iterdir():
            found += [int(pid) for pid in (thread / "children").read_text("ascii").split()]
    return found


def _read(pid: int, file: str) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{file}").read_bytes()
    return b""


async def order(broker: Broker, prompt: str) -> str:
    answer = await broker.client.post("/api/generate/image", json={"prompt": prompt})
    assert answer.status_code == 202, answer.text
    task_id: str = answer.json()["taskId"]
    return task_id


async def end(broker: Broker, task_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            answer = await broker.client.get(f"/api/task/{task_id}", params={"wait": "5"})
            data: dict[str, Any] = answer.json()["data"]
            if data["status"] in {"completed", "failed", "canceled"}:
                return data


async def jobs(sandbox: str) -> int:
    async with httpx.AsyncClient(verify=False) as client:
        return len((await client.get(f"{sandbox}/sandbox/jobs")).json()["jobs"])


@pytest.mark.faults
async def test_killed_child_costs_no_task_and_leaves_no_half_file(tmp_path: Path) -> None:
    """kill -9 again and again, while lives are in progress."""
    kills = 0

    async def keep_killing(broker: Broker) -> None:
        nonlocal kills
        while True:
            for pid in image_processes(broker):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
            await asyncio.sleep(0.3)

    async with serve_sandbox(options=OPTIONS) as sandbox:
        variables = environment(tmp_path, sandbox, free_port(), BROKER_TASK_DEADLINE_SECONDS="60")
        async with serving(variables, tmp_path) as broker:
            killing = asyncio.create_task(keep_killing(broker))
            ends = []
            for _ in range(5):
                ids = await asyncio.gather(*(order(broker, "a red bicycle") for _ in range(LIVES // 5)))
                ends += await asyncio.gather(*(end(broker, task_id) for task_id in ids))
            killing.cancel()
            for data in ends:
                image = await broker.client.get(data["result"])
                assert (image.status_code, len(image.content)) == (200, data["results"][0]["bytes"])
            assert await broker.stop() == 0
        made = await jobs(sandbox)
    assert [data["status"] for data in ends] == ["completed"] * LIVES
    assert made == LIVES
    assert kills >= 3
    assert_whole_files(tmp_path / "data" / "blobs")


def assert_whole_files(blobs: Path) -> None:
    for path in blobs.rglob("*"):
        if path.is_file() and not path.name.startswith("."):  # such a draft is deleted with its task
            assert path.name.rpartition(".")[2] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("is_killed", [False, pytest.param(True, marks=pytest.mark.faults)])
async def test_child_has_no_secret_and_ends_with_the_broker(tmp_path: Path, is_killed: bool) -> None:
    async with serve_sandbox(options=OPTIONS) as sandbox:
        variables = environment(tmp_path, sandbox, free_port(), SECRET_KEY=PLANTED["secret-key"])
        async with serving(variables, tmp_path) as broker:
            assert image_processes(broker) == []
            assert (await end(broker, await order(broker, "a red bicycle")))["status"] == "completed"
            (pid,) = image_processes(broker)
            assert find_secrets(_read(pid, "environ")) == []
            if is_killed:
                await broker.kill()
            else:
                assert await broker.stop() == 0
            async with asyncio.timeout(1):
                await until(lambda: _has_ended(pid))


async def _has_ended(pid: int) -> bool:
    return not is_running(pid) or b"State:\tZ" in _read(pid, "status")  # a zombie of a killed broker has another parent


@pytest.mark.faults
async def test_broker_takes_images_again_after_an_idle_child_was_killed(tmp_path: Path) -> None:
    async with (
        serve_sandbox(options=OPTIONS) as sandbox,
        serving(environment(tmp_path, sandbox, free_port()), tmp_path) as broker,
    ):
        for _ in range(3):
            assert (await end(broker, await order(broker, "a red bicycle")))["status"] == "completed"
            (pid,) = image_processes(broker)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: _has_no_child(broker))
        assert await broker.stop() == 0
    assert (tmp_path / "log.txt").read_text().count("image_process_lost") == 3


async def _has_no_child(broker: Broker) -> bool:
    return image_processes(broker) == []


@pytest.mark.faults
@pytest.mark.parametrize("ends", ["stop", "kill"])
async def test_each_process_of_a_supervisor_has_one_child_until_it_ends(
    tmp_path: Path, postgres: Postgres, ends: str
) -> None:
    async with serve_sandbox(options=OPTIONS) as sandbox:
        more = {"DATABASE_URL": await postgres.fresh(), "WORKERS": "2"}
        async with serving(environment(tmp_path, sandbox, free_port(), **more), tmp_path) as broker:

            async def has_two() -> bool:
                await end(broker, await order(broker, "a red bicycle"))
                return len(image_processes(broker)) == 2

            await until(has_two)
            found = image_processes(broker)
            if ends == "kill":
                await broker.kill()
            else:
                assert await broker.stop() == 0
            for pid in found:
                await until(partial(_has_ended, pid))


@pytest.mark.faults
async def test_broker_runs_and_stops_without_standard_streams(tmp_path: Path) -> None:
    """Their numbers are not those of its sockets, for which libuv aborts."""
    async with serve_sandbox(options=OPTIONS) as sandbox:
        variables = environment(tmp_path, sandbox, free_port())
        command = ("-c", 'exec "$0" -m broker serve <&- >&- 2>&-', sys.executable)
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", *command, cwd=tmp_path, env={**variables, "PYTHONPATH": str(ROOT)}
        )
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{variables['BROKER_PORT']}", timeout=35) as client:
            broker = Broker(process, client)
            try:
                await until(lambda: _answers(client))
                assert (await end(broker, await order(broker, "a red bicycle")))["status"] == "completed"
                assert await broker.stop() == 0
            finally:
                await broker.kill()


async def _answers(client: httpx.AsyncClient) -> bool:
    with suppress(httpx.HTTPError):
        return (await client.get("/health")).status_code == 200
    return False
