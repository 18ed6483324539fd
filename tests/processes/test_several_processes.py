"""`broker serve --workers 2` on Postgres: one port, restarts, metrics of both, one clean stop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Set
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.bootstrap import load_settings
from broker.cli import ExitCode
from broker.cli.serve import require_processes
from broker.errors import SettingsError
from broker.sandbox.engine import Options
from broker.sandbox.server import serve_sandbox
from broker.server.sockets import bind_socket, reserve_port, socket_port
from tests.support.process import ROOT, Broker, environment, free_port, serving, until
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio

ORDERS = 'broker_http_requests_total{operation="createImage",status="202"}'


@asynccontextmanager
async def two_processes(folder: Path, postgres: Postgres, duration: float = 0.1) -> AsyncIterator[tuple[Broker, str]]:
    """Run a broker of two processes; yield it, and the address of its provider. duration: of a job, in seconds."""
    async with serve_sandbox(options=Options(duration=duration, creates_per_window=10_000)) as provider:
        more = {"DATABASE_URL": await postgres.fresh(), "WORKERS": "2", "BROKER_LOG_FORMAT": "json"}
        async with serving(environment(folder, provider, free_port(), **more), folder) as broker:
            await until(lambda: has_line(folder, "Broker at"))
            yield broker, provider


async def has_line(folder: Path, text: str, count: int = 1) -> bool:
    return (folder / "log.txt").read_text().count(text) >= count


def log_lines(folder: Path, action: str) -> list[dict[str, Any]]:
    lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("{")]
    return [event for event in map(json.loads, lines) if event["action"] == action]


def pids(folder: Path) -> dict[int, int]:
    """Return the process id of each process, by its number."""
    return {event["process"]: event["pid"] for event in log_lines(folder, "server_process_started")}


async def read_counter(broker: Broker, sample: str) -> float:
    """Return a sample of the metrics page; over a new connection, so either process may be asked."""
    async with httpx.AsyncClient(base_url=broker.client.base_url, verify=False) as client:
        page = (await client.get("/metrics")).text
    return sum(float(value) for value in re.findall(rf"^{re.escape(sample)} (\S+)$", page, re.MULTILINE))


async def create_task(broker: Broker, key: str = "") -> str:
    """Order an image over a new connection; return the id of its task. key: an idempotency key."""
    async with httpx.AsyncClient(base_url=broker.client.base_url, timeout=10, verify=False) as client:
        headers = {"Idempotency-Key": key} if key else {}
        answer = await client.post("/api/generate/image", json={"prompt": f"a red fox {key}"}, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["taskId"])


async def test_killed_process_is_restarted_and_both_stop_on_sigterm(tmp_path: Path, postgres: Postgres) -> None:
    async with two_processes(tmp_path, postgres) as (broker, _):
        first = pids(tmp_path)
        ids = [await create_task(broker) for _ in range(12)]
        assert {await read_counter(broker, ORDERS) for _ in range(6)} == {12}  # whichever process is asked
        os.kill(first[1], signal.SIGKILL)
        await until(lambda: has_line(tmp_path, '"action": "server_process_started"', 3))
        assert {await read_counter(broker, ORDERS) for _ in range(3)} == {12}  # what the killed one counted remains
        await until(lambda: all_ended(broker, ids))
        assert await broker.stop() == 0
    assert [event["exit_code"] for event in log_lines(tmp_path, "server_process_ended")] == [-signal.SIGKILL]
    assert (tmp_path / "log.txt").read_text().count("Broker at") == 1
    assert {event.get("process") for event in log_lines(tmp_path, "server_stopping")} == {None, 1, 2}
    assert not any(is_alive(pid) for pid in pids(tmp_path).values())


@pytest.mark.faults
async def test_no_order_is_lost_or_doubled_while_processes_are_killed(tmp_path: Path, postgres: Postgres) -> None:
    async with two_processes(tmp_path, postgres) as (broker, provider):
        keys = [f"order-{number}" for number in range(60)]
        waiting = list(keys)
        ids: dict[str, str] = {}

        async def order() -> None:
            while waiting:
                key = waiting.pop()
                while key not in ids:
                    with suppress(httpx.TransportError):  # its process was killed: the key makes a repetition safe
                        ids[key] = await create_task(broker, key)

        async def kill() -> None:
            for number in (1, 2, 1):
                await until(lambda: is_ready(broker))
                os.kill(pids(tmp_path)[number], signal.SIGKILL)
                await asyncio.sleep(0.7)

        await asyncio.gather(kill(), *(order() for _ in range(8)))
        # unknown: it was being submitted by a killed process, and its callback was lost with another one
        await until(lambda: all_ended(broker, ids.values(), {"completed", "unknown_outcome"}))
        async with httpx.AsyncClient(verify=False) as client:
            jobs = (await client.get(f"{provider}/sandbox/jobs")).json()["jobs"]
        assert len(set(ids.values())) == len(keys)
        assert len(jobs) <= len(keys)  # nothing was ordered twice
        assert await broker.stop() == 0
    assert len(log_lines(tmp_path, "server_process_ended")) == 3


@pytest.mark.faults
async def test_process_that_is_told_to_stop_drains_and_is_replaced(tmp_path: Path, postgres: Postgres) -> None:
    async with two_processes(tmp_path, postgres) as (broker, _):
        first = pids(tmp_path)
        ids = [await create_task(broker) for _ in range(6)]
        os.kill(first[2], signal.SIGTERM)
        ids += [await create_task(broker) for _ in range(6)]
        await until(lambda: has_line(tmp_path, '"action": "server_process_started"', 3))
        assert {await read_counter(broker, ORDERS) for _ in range(3)} == {12}
        await until(lambda: all_ended(broker, ids))
    assert [(event["process"], event["exit_code"]) for event in log_lines(tmp_path, "server_process_ended")] == [(2, 0)]


@pytest.mark.faults
async def test_processes_stop_when_their_supervisor_is_killed(tmp_path: Path, postgres: Postgres) -> None:
    async with two_processes(tmp_path, postgres) as (broker, _):
        await broker.kill()
        await until(lambda: are_gone(tmp_path))


@pytest.mark.faults
async def test_second_signal_stops_at_once(tmp_path: Path, postgres: Postgres) -> None:
    async with two_processes(tmp_path, postgres, duration=60) as (broker, _):
        task_id = await create_task(broker)
        waiting = asyncio.create_task(broker.client.get(f"/api/task/{task_id}", params={"wait": "30"}))
        await asyncio.sleep(0.1)
        broker.process.send_signal(signal.SIGINT)
        await until(lambda: has_line(tmp_path, "stopping on", 3))
        assert await broker.stop() == 0
        with suppress(httpx.HTTPError):
            await waiting
    assert await are_gone(tmp_path)


async def test_sqlite_is_for_one_process(tmp_path: Path) -> None:
    code, output = await run_serve(environment(tmp_path, "http://127.0.0.1:9", 0), tmp_path)
    assert (code, output.count("\n")) == (ExitCode.UNAVAILABLE, 1), output
    assert re.match(r"WORKERS=2 \(--workers\) needs Postgres. .* set WORKERS=1", output)


def test_sandbox_is_for_one_process() -> None:
    settings = load_settings(isolated=True, database_url="postgresql://db.example.com/broker", workers=2)
    with pytest.raises(SettingsError, match=r"WORKERS=2 \(--workers\) needs a provider key.* or WORKERS=1"):
        require_processes(settings)


def test_port_of_another_broker_is_not_shared() -> None:
    with (
        closing(bind_socket("127.0.0.1", 0, is_one_of_many=True)) as taken,
        pytest.raises(SettingsError, match=r"BROKER_PORT: port .* taken"),
    ):
        reserve_port("127.0.0.1", socket_port(taken))


@pytest.mark.faults
async def test_first_process_that_cannot_start_ends_the_whole(tmp_path: Path, postgres: Postgres) -> None:
    variables = {"DATABASE_URL": await postgres.fresh(), "WEBHOOK_BASE_URL": "http://127.0.0.1:0"}
    code, output = await run_serve(environment(tmp_path, "http://127.0.0.1:9", 0, **variables), tmp_path)
    assert (code, output.count("WEBHOOK_BASE_URL")) == (ExitCode.UNAVAILABLE, 1), output


async def run_serve(env: dict[str, str], folder: Path) -> tuple[int, str]:
    """Run `broker serve --workers 2` to its end; return the exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker", "serve", "--workers", "2"),
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT), "COLUMNS": "1000"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(20):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def is_ready(broker: Broker) -> bool:
    with suppress(httpx.HTTPError):
        return (await broker.client.get("/ready")).status_code == 200
    return False


async def are_gone(folder: Path) -> bool:
    return not any(is_alive(pid) for pid in pids(folder).values())


async def all_ended(broker: Broker, ids: Iterable[str], ends: Set[str] = frozenset({"completed"})) -> bool:
    """Return whether the status of each task, or for failed ones the error code, is one of `ends`."""
    tasks = [(await broker.client.get(f"/api/task/{task_id}")).json()["data"] for task_id in ids]
    return {(task["errorDetail"] or {}).get("code", task["status"]) for task in tasks} <= ends


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
