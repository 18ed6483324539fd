"""Four processes on Postgres and a bucket, of which two are killed and one is paused: every order ends right, once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess

import httpx
import pytest

from tests.support import cluster
from tests.support.cluster import ROOT, Disaster, kill, pause, revive, trial
from tests.support.servers.postgres import Postgres
from tests.support.servers.s3 import S3Server

pytestmark = pytest.mark.anyio

KILLED_IN_TURN: tuple[tuple[float, Disaster], ...] = (
    (0.15, kill("worker 1")),
    (0.35, revive("worker 1")),
    (0.4, kill("serve 1")),
    (0.6, revive("serve 1")),
    (0.65, kill("worker 1")),
    (0.75, pause("worker 2")),
)


@pytest.mark.parametrize("orders", [40, pytest.param(500, marks=[pytest.mark.faults, pytest.mark.timeout(600)])])
async def test_processes_are_killed_in_turn_and_every_order_ends_once(
    orders: int, postgres: Postgres, s3_server: S3Server
) -> None:
    async with cluster.running(database=postgres, bucket=s3_server) as running:
        verdict = await trial(running, orders, KILLED_IN_TURN)
        log = running.log()
    assert verdict.right, f"{verdict.summary()}\n{log}"
    assert len(verdict.events) == len(KILLED_IN_TURN)


@pytest.mark.faults
async def test_paused_process_keeps_its_client_while_another_answers_the_same_order(
    postgres: Postgres, s3_server: S3Server
) -> None:
    """The client of the paused process gets its answer at last; the order stays one, and is then answered."""

    async def generate(client: httpx.AsyncClient, member: cluster.Member) -> str:
        answer = await client.post(f"http://127.0.0.1:{member.port}/generate", json={"prompt": "a red fox"})
        assert answer.status_code == 200, answer.text
        return str(answer.headers["x-request-id"])

    headers = {"Authorization": "Bearer cluster-key"}
    async with (
        cluster.running(database=postgres, bucket=s3_server) as running,
        httpx.AsyncClient(headers=headers, timeout=30, verify=False) as client,
    ):
        one, two = running.members["serve 1"], running.members["serve 2"]
        first = asyncio.create_task(generate(client, one))
        async with asyncio.timeout(10):
            while not await running.jobs():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        one.send(signal.SIGSTOP)
        joined = await generate(client, two)
        one.send(signal.SIGCONT)
        assert (await first, len(await running.jobs())) == (joined, 1)
        again = {await generate(client, member) for member in (one, two)}
        assert (len(again - {joined}), len(await running.jobs())) == (2, 3)


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_cluster_script_prints_its_verdict() -> None:
    """The same trial as at the desk, smaller: two of four stay dead."""
    environment = {**os.environ, "CLUSTER_IS_SET_UP": "yes"}
    script = subprocess.run(
        [ROOT / "scripts" / "cluster.sh", "trial", "120"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=170,
    )
    assert script.returncode == 0, script.stdout + script.stderr
    assert "submissions           120" in script.stdout
    assert script.stdout.rstrip().endswith("RIGHT")
