"""SIGTERM under load: every request that was sent is answered."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from broker.bootstrap import load_settings, open_services
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import serve
from tests.support.stop_load import CLIENTS, Load, running_load

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("stops", [5, pytest.param(200, marks=[pytest.mark.faults, pytest.mark.timeout(600)])])
async def test_stop_under_load_answers_every_request_that_was_sent(tmp_path: Path, stops: int) -> None:
    counts: Counter[str] = Counter()
    async with running_load() as load:
        for number in range(stops):
            assert await seconds_to_stop(tmp_path, load, 0.2 + number % 10 * 0.01) < 5
        for _ in range(stops):
            counts += await load.end()
    assert not counts["lost"], counts
    assert counts["announced"] > stops
    assert counts["refused"] == stops * sum(client.count for client in CLIENTS)


async def seconds_to_stop(folder: Path, load: Load, seconds: float) -> float:
    """Serve under load for some seconds; return the seconds from SIGTERM until `serve` returned."""
    closed = "http://127.0.0.1:9"
    settings = load_settings(
        env_file=None, kie_keys="a-key-of-the-tests", api_url=closed, tunnel_api=closed, data_dir=folder
    )
    with closing(bind_socket("127.0.0.1", 0)) as sock:
        ready = asyncio.Event()
        async with open_services(settings, port=socket_port(sock)) as services:
            serving = asyncio.create_task(serve(services, [sock], ready=ready.set))
            await ready.wait()
            await load.begin(socket_port(sock))
            await asyncio.sleep(seconds)
            begun = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
            await serving
            return time.monotonic() - begun
