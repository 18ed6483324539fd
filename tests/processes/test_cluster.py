"""Four processes on Postgres and a bucket, of which two are killed and one is paused: every order ends right, once."""

from __future__ import annotations

import os
import subprocess

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


@pytest.mark.parametrize("orders", [60, pytest.param(500, marks=[pytest.mark.faults, pytest.mark.timeout(600)])])
async def test_processes_are_killed_in_turn_and_every_order_ends_once(
    orders: int, postgres: Postgres, s3_server: S3Server
) -> None:
    async with cluster.running(database=postgres, bucket=s3_server) as running:
        verdict = await trial(running, orders, KILLED_IN_TURN)
        log = running.log()
    assert verdict.right, f"{verdict.summary()}\n{log}"
    assert len(verdict.events) == len(KILLED_IN_TURN)


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
