"""What an idle process costs: how often it wakes up, and what it imports."""

from __future__ import annotations

import asyncio
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

from broker.bootstrap import load_settings, open_services
from broker.server.sockets import bind_socket, socket_port
from broker.server.uvicorn import running_server
from tests.support.planted_secrets import EVERYWHERE

SPEED = 60.0
"""Seconds that pass in the loop during one real second."""
SETTLING_SECONDS, IDLE_SECONDS = 10.0, 30.0


class CountingSelector(selectors.DefaultSelector):
    """Counts the ends of sleeps, which are shortened."""

    wake_ups = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self.wake_ups += 1
        return super().select(None if timeout is None else timeout / SPEED)


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock runs faster."""

    def time(self) -> float:
        return time.monotonic() * SPEED


def run_fast(body: Callable[[CountingSelector], Coroutine[Any, Any, None]]) -> None:
    selector = CountingSelector()
    with asyncio.Runner(loop_factory=lambda: FastLoop(selector)) as runner:
        runner.run(body(selector))


def test_idle_process_wakes_up_about_once_a_second(tmp_path: Path) -> None:
    woken = 0

    async def idle(selector: CountingSelector) -> None:
        nonlocal woken
        nowhere = "http://127.0.0.1:9"
        settings = load_settings(
            env_file=None,
            **{**EVERYWHERE, "api_url": nowhere, "webhook_base_url": "https://broker.example.com"},
            data_dir=tmp_path,
        )
        with closing(bind_socket("127.0.0.1", 0)) as sock:
            async with open_services(settings, port=socket_port(sock)) as services, running_server(services, sock):
                await asyncio.sleep(SETTLING_SECONDS)
                before = selector.wake_ups
                await asyncio.sleep(IDLE_SECONDS)
                woken = selector.wake_ups - before

    run_fast(idle)
    # a beat a second; and a thread answers a few times in ten seconds
    assert woken <= 1.6 * IDLE_SECONDS


def test_serving_imports_no_library_that_few_processes_need() -> None:
    heavy = [
        "PIL",
        "asyncpg",
        "cryptography",
        "httpx",
        "jwt",
        "obstore",
        "rich.console",
        "broker.client",
        "broker.mcp",
        "broker.sandbox",
    ]
    command = f"import sys, broker.cli.serve; print(*sorted(set({heavy}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
