"""A broker in a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx

from tests.support.planted_secrets import PLANTED, assert_no_secrets
from tests.support.servers.ports import free_port

__all__ = ["Broker", "environment", "free_port", "serving", "until"]

ROOT = Path(__file__).parents[2]


def environment(folder: Path, provider: str, port: int, **more: str) -> dict[str, str]:
    """Return the environment of a broker process that uses the sandbox at `provider` as kie.ai."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "NANO_BANANA_API_KEY": PLANTED["kie"],
        "NANO_BANANA_API_URL": provider,
        "NANO_BANANA_UPLOAD_URL": provider,
        "WEBHOOK_BASE_URL": f"http://127.0.0.1:{port}",
        "BROKER_DOWNLOAD_ALLOW": provider.removeprefix("http://"),
        "BROKER_DATA_DIR": str(folder / "data"),
        "BROKER_PORT": str(port),
        "BROKER_CHECK_AFTER_SECONDS": "1",
        "BROKER_RETRY_SECONDS": "0.1",
        "BROKER_LEASE_SECONDS": "1",
        "BROKER_TASK_DEADLINE_SECONDS": "8",
        "NANO_BANANA_CREATES_PER_10S": "1000",
        "RATE_LIMIT_PER_MINUTE": "10000",
        **more,
    }


class Broker:
    """One running `broker serve`."""

    def __init__(self, process: asyncio.subprocess.Process, client: httpx.AsyncClient) -> None:
        self.process = process
        self.client = client

    async def kill(self) -> None:
        """Send kill -9."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


@asynccontextmanager
async def serving(env: dict[str, str], folder: Path) -> AsyncIterator[Broker]:
    """Run `broker serve` in `folder`; kill it on the way out if it still runs."""
    with (folder / "log.txt").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "broker",
            "serve",
            cwd=folder,
            env={**env, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
        address = f"http://127.0.0.1:{env['BROKER_PORT']}"
        async with httpx.AsyncClient(base_url=address, timeout=35, verify=False) as client:
            broker = Broker(process, client)
            try:
                await _healthy(broker, folder)
                yield broker
            finally:
                await broker.kill()
            assert_no_secrets(folder, folder / "data")


async def _healthy(broker: Broker, folder: Path) -> None:
    async with asyncio.timeout(20):
        while True:
            assert broker.process.returncode is None, (folder / "log.txt").read_text()
            with suppress(httpx.HTTPError):
                if (await broker.client.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(0.05)


async def until(true: Callable[[], Awaitable[object]]) -> None:
    """Poll until true: another process cannot notify this one."""
    async with asyncio.timeout(20):
        while True:
            if await true():
                return
            await asyncio.sleep(0.01)
