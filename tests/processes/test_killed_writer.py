"""kill -9 of the process that writes the database, under a running `broker serve`, and of the broker above it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.process import Broker, environment, free_port, serving

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

ORDERS, KILLS = 40, 4
OPTIONS = Options(duration=0.2, callback_spacing=0.2, callback_retries=60, creates_per_window=10_000)


def find_writers(pid: int) -> list[int]:
    """Return the running processes that write a database, and have this id or this parent."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if b"storage.sql.writer" in command and fields[0] != "Z" and str(pid) in {fields[1], folder.name}:
            found.append(int(folder.name))
    return found


async def place_order(broker: Broker, number: int) -> str:
    """Order as a client that retries with the same key until the order is accepted."""
    headers = {"Idempotency-Key": f"order-{number}"}
    async with asyncio.timeout(20):
        while True:
            answer = await broker.client.post(
                "/api/generate/image", json={"prompt": f"picture {number}"}, headers=headers
            )
            if answer.status_code == 202:
                task_id: str = answer.json()["taskId"]
                return task_id
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.05)


async def wait_end(broker: Broker, task_id: str) -> str:
    """Return the final status, or the code of a failure."""
    async with asyncio.timeout(40):
        while True:
            data = (await broker.client.get(f"/api/task/{task_id}", params={"wait": "2"})).json()["data"]
            if data["status"] in {"completed", "failed", "canceled"}:
                return str(data["errorDetail"]["code"] if data["status"] == "failed" else data["status"])


async def kill_writers(broker: Broker) -> int:
    killed = 0
    for _ in range(KILLS):
        await asyncio.sleep(0.25)
        for pid in find_writers(broker.process.pid):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


async def test_orders_end_once_although_their_writer_is_killed(tmp_path: Path) -> None:
    async with serve_sandbox(options=OPTIONS) as sandbox:
        variables = environment(tmp_path, sandbox, free_port(), BROKER_TASK_DEADLINE_SECONDS="30")
        async with serving(variables, tmp_path) as broker:

            async def live(number: int) -> tuple[str, str]:
                await asyncio.sleep(number * 0.02)
                task_id = await place_order(broker, number)
                return task_id, await wait_end(broker, task_id)

            killing = asyncio.create_task(kill_writers(broker))
            ends = dict(await asyncio.gather(*map(live, range(ORDERS))))
            jobs = (await broker.client.get(f"{sandbox}/sandbox/jobs")).json()["jobs"]
    assert await killing >= KILLS - 1
    assert "database_writer_lost" in (tmp_path / "log.txt").read_text()
    assert len(ends) == ORDERS
    # it was lost between the intent and the request: the broker cannot know that, and does not order twice
    assert set(ends.values()) <= {"completed", "unknown_outcome"}
    assert list(ends.values()).count("completed") >= ORDERS - KILLS * 4
    assert set(Counter(job["prompt"] for job in jobs).values()) == {1}


async def test_writer_ends_with_a_killed_broker(tmp_path: Path) -> None:
    async with (
        serve_sandbox(options=OPTIONS) as sandbox,
        serving(environment(tmp_path, sandbox, free_port()), tmp_path) as broker,
    ):
        (writer,) = find_writers(broker.process.pid)
        await place_order(broker, 1)
        await broker.kill()
        async with asyncio.timeout(1):
            while find_writers(writer):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_writer_ends_with_a_stopped_broker(tmp_path: Path) -> None:
    async with (
        serve_sandbox(options=OPTIONS) as sandbox,
        serving(environment(tmp_path, sandbox, free_port()), tmp_path) as broker,
    ):
        (writer,) = find_writers(broker.process.pid)
        os.kill(writer, signal.SIGTERM)  # as a service manager sends it, to all processes
        assert await wait_end(broker, await place_order(broker, 1)) == "completed"
        assert find_writers(broker.process.pid) == [writer]
        assert await broker.stop() == 0
        assert not find_writers(writer)
    assert not (tmp_path / "data" / "broker.db-wal").exists()
