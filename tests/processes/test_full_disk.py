"""A broker on a full disk: it starts, serves what it has, frees space, and loses no paid image, even when killed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from tests.support.process import Broker, environment, free_port, serving, until
from tests.support.shell import Shell
from tests.support.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.anyio

MIB = 2**20
OPTIONS = Options(duration=0.2, callback_spacing=0.2, callback_retries=8, creates_per_window=10_000)
ORDER = "/api/generate/image"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 96) as opened:
        yield opened


async def get_task(broker: Broker, task_id: str, wait_seconds: int = 0) -> dict[str, Any]:
    answer = await broker.client.get(f"/api/task/{task_id}", params={"wait": wait_seconds})
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def wait_ends(broker: Broker, task_ids: list[str]) -> list[dict[str, Any]]:
    ends = []
    async with asyncio.timeout(60):
        for task_id in task_ids:
            while (data := await get_task(broker, task_id, 2))["status"] not in {"completed", "failed"}:
                pass
            ends.append(data)
    return ends


# -- start and cleanup


@pytest.mark.faults
@pytest.mark.parametrize("left_bytes", [20 * MIB, 0])
async def test_broker_starts_and_cleans_up_on_a_full_disk(tmp_path: Path, disk: SmallDisk, left_bytes: int) -> None:
    async with serve_sandbox(options=OPTIONS) as sandbox:
        variables = environment(
            tmp_path,
            sandbox,
            free_port(),
            BROKER_DATA_DIR=str(disk.folder / "data"),
            BROKER_TASK_DEADLINE_SECONDS="600",
        )
        async with serving(variables, tmp_path) as broker:
            first = (await broker.client.post(ORDER, json={"prompt": "a red bicycle"})).json()["taskId"]
            (ended,) = await wait_ends(broker, [first])
            waiting = (await broker.client.post(ORDER, json={"prompt": "[mood:slow:600][mood:lost]"})).json()["taskId"]
            await until(lambda: _has_jobs(sandbox, 2))
            disk.fill(left_bytes)
            await broker.kill()
        async with serving(variables, tmp_path) as broker:
            await _check_service(broker, ended, waiting, takes_callbacks=left_bytes > 0)
        cleaned = await asyncio.to_thread(
            Shell(folder=tmp_path, settings=variables).run, "cleanup", BROKER_RETENTION_HOURS="0.0000001"
        )
        assert (cleaned.code, cleaned.out[:6]) == (0, "1 task"), cleaned.err
        assert not await _files(disk.folder / "data" / "blobs")
        disk.free()
        async with serving(variables, tmp_path) as broker:
            assert (await broker.client.get("/ready")).status_code == 200


async def _files(folder: Path) -> list[Path]:
    """Return the stored images; not the store's own files."""
    return await asyncio.to_thread(lambda: [path for path in folder.rglob("*/*/*") if path.is_file()])


async def _check_service(broker: Broker, ended: dict[str, Any], waiting: str, *, takes_callbacks: bool) -> None:
    """Assert that polls, images and, with space for them, callbacks are served, and that readiness names the disk."""
    assert (await get_task(broker, ended["id"]))["status"] == "completed"
    assert (await get_task(broker, waiting))["status"] == "processing"
    image = await broker.client.get(ended["result"])
    assert (image.status_code, len(image.content)) == (200, ended["results"][0]["bytes"])
    ready = await broker.client.get("/ready")
    assert (ready.status_code, "free" in ready.json()["checks"]["blobs"]) == (503, True)
    callback = await broker.client.post("/api/webhook/nano-banana", params={"task": waiting}, json={"code": 200})
    assert callback.status_code in ({200, 401, 404} if takes_callbacks else {507}), callback.text


async def _has_jobs(sandbox: str, count: int) -> bool:
    async with httpx.AsyncClient(verify=False) as client:  # plain HTTP: loading the certificates takes 50 ms
        return len((await client.get(f"{sandbox}/sandbox/jobs")).json()["jobs"]) >= count


# -- paid images


class Ledger:
    """The attempts in the database of another process, and the job ids that it could not store yet."""

    def __init__(self, database: Path, log: Path) -> None:
        self._database = database
        self._log = log

    def count_jobs(self) -> int:
        """Return the number of job ids in the database."""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as opened:
            (count,) = opened.execute("SELECT count(*) FROM attempts WHERE job_id IS NOT NULL").fetchone()
            return int(count)

    def count_unstored(self) -> int:
        """Return the number of job ids that were received, and not stored at the first try."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return len({line["task"] for line in lines if line.get("action") == "store_retry" and line.get("job")})


def _fill_log(database: Path) -> None:
    """Use up the space that the log of the database still has on a full disk."""
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("PRAGMA wal_autocheckpoint=0")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            other.execute("CREATE TABLE filler (x TEXT)")
            while True:
                other.execute("INSERT INTO filler VALUES (:x)", {"x": "x" * 5000})


@pytest.mark.parametrize(
    ("count", "is_killed"),
    [
        (12, True),
        pytest.param(60, True, marks=pytest.mark.faults),
        pytest.param(60, False, marks=pytest.mark.faults),
    ],
)
async def test_no_paid_image_is_lost_when_the_disk_fills_up(
    tmp_path: Path, disk: SmallDisk, count: int, is_killed: bool
) -> None:
    """The provider's answers arrive on a full disk, and no callback repeats a job id."""
    async with serve_sandbox(options=OPTIONS) as sandbox:
        variables = environment(
            tmp_path,
            sandbox,
            free_port(),
            DATABASE_URL=f"sqlite:///{disk.folder / 'b.db'}",
            WEBHOOK_BASE_URL="",
            BROKER_TUNNEL_API="http://127.0.0.1:9",
            BROKER_LOG_FORMAT="json",
            MAX_CONCURRENT_GENERATIONS="100",
            BROKER_TASK_DEADLINE_SECONDS="60",
            BROKER_POLL_SECONDS="0.5",
        )
        ledger = Ledger(disk.folder / "b.db", tmp_path / "log.txt")

        async def all_answered() -> bool:
            return ledger.count_jobs() + ledger.count_unstored() >= count

        async with serving(variables, tmp_path) as broker:
            prompt = {"prompt": "a red bicycle [mood:slow_answer:2]"}
            orders = [await broker.client.post(ORDER, json=prompt) for _ in range(count)]
            task_ids = [answer.json()["taskId"] for answer in orders]
            await until(lambda: _has_jobs(sandbox, count))
            disk.fill()
            await asyncio.to_thread(_fill_log, disk.folder / "b.db")
            await until(all_answered)
            if is_killed:
                await broker.kill()
            else:
                disk.free()
                ends = await wait_ends(broker, task_ids)
        if is_killed:
            disk.free()
            async with serving(variables, tmp_path) as broker:
                ends = await wait_ends(broker, task_ids)
        assert [data["errorDetail"]["code"] for data in ends if data["status"] == "failed"] == []
        assert await _has_jobs(sandbox, count)
        assert not await _has_jobs(sandbox, count + 1)
