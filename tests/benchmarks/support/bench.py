"""What all paths share in one run: sizes, folders, calibration, the reference, the broker and its provider."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.request import Request, urlopen

from anyio import to_thread

from tests.benchmarks.support import disk, images
from tests.benchmarks.support.machine import Calibration
from tests.benchmarks.support.processes import Subject, environment, serving
from tests.support.servers.ports import free_port

T = TypeVar("T")

SECRET: Final = "the secret of all brokers of the benchmark"
WEBHOOK_KEY: Final = "the webhook key of the benchmark"
ENOUGH: Final = "1000000"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes. seconds: of one measurement."""

    rounds: int = 3
    seconds: float = 1.0
    is_long: bool = False

    @property
    def few_rounds(self) -> int:
        """Return the rounds of what takes seconds to start."""
        return self.rounds if self.is_long else min(self.rounds, 2)

    def size(self, short: int, long: int) -> int:
        return long if self.is_long else short


@dataclass
class Bench:
    """One run of the benchmark. root: a folder on the disk that is measured.

    It is deleted at the end, and nothing before that: for five minutes ext4 passes over each freed inode when it looks
    for a new one, so the files that one path deletes would make those of the next one dear.
    """

    options: Options
    root: Path
    calibration: Calibration = field(init=False)
    kept: dict[str, Any] = field(default_factory=dict)
    """What paths share, by a name of it."""

    def __post_init__(self) -> None:
        self.calibration = Calibration(self.root)
        self.cache = self.root.parent / "cache"
        self.cache.mkdir(exist_ok=True)

    def folder(self, name: str) -> Path:
        folder = self.root / f"{name}-{secrets.token_hex(4)}"
        folder.mkdir()
        return folder

    async def interleave(
        self, contestants: Mapping[str, Callable[[], Awaitable[T]]], *, warm_up: bool = False, rounds: int | None = None
    ) -> dict[str, list[T]]:
        """Let all take turns: reference, ours, reference, ours; the machine is calibrated before each round.

        warm_up: one turn of each before, which does not count.
        """
        results: dict[str, list[T]] = {name: [] for name in contestants}
        for measure in contestants.values() if warm_up else ():
            await measure()
        for _ in range(rounds or self.options.rounds):
            await self.calibrate()
            for name, measure in contestants.items():
                results[name].append(await measure())
        await self.calibrate()
        return results

    async def calibrate(self) -> None:
        await to_thread.run_sync(self.calibration.take)

    # -- subjects

    @asynccontextmanager
    async def bare(self, answer_bytes: int = 400) -> AsyncIterator[Subject]:
        """The reference P: bare Starlette, uvloop and httptools, one worker, a constant answer."""
        port, folder = free_port(), self.folder("bare")
        app = "tests.benchmarks.support.bare:app"
        flags = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")
        command = (sys.executable, "-m", "uvicorn", app, "--port", str(port), *flags)
        env = environment(ANSWER_BYTES=str(answer_bytes))
        async with serving(command, port, folder=folder, env=env) as subject:
            yield subject

    @asynccontextmanager
    async def provider(self, *, delay: float | None = 0.0, image: Path | None = None) -> AsyncIterator[Provider]:
        """The pretend provider. delay: seconds from an order to its callback; None: until `release`."""
        port, folder = free_port(), self.folder("provider")
        file = image or await to_thread.run_sync(images.small_image, self.cache)
        module = "tests.benchmarks.support.provider"
        command = (sys.executable, "-m", module, str(port), str(file), "--webhook-key", WEBHOOK_KEY)
        async with serving(command, port, folder=folder, env=environment()) as subject:
            provider = Provider(subject)
            await provider.control("delay", seconds=delay)
            yield provider

    @asynccontextmanager
    async def broker(
        self,
        provider: Provider | None,
        *,
        data: Path | None = None,
        slow_disk: bool = False,
        flags: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Broker]:
        """`broker serve` with the provider as kie.ai; limits that no path is about are out of reach.

        data: its data folder; a new one by default. slow_disk: each fsync takes five milliseconds more.
        variables: of its environment, which replace those of `broker_variables`.
        """
        port, folder = free_port(), self.folder("broker")
        data = data or folder / "data"
        env = environment(**broker_variables(provider, port, data) | dict(variables or {}))
        if slow_disk:
            env["LD_PRELOAD"] = str(await to_thread.run_sync(disk.slow_fsync, self.cache))
        command = (sys.executable, "-m", "broker", "serve", *flags)
        async with serving(command, port, folder=folder, env=env, probe="/health") as subject:
            yield Broker(subject, data)


def broker_variables(provider: Provider | None, port: int, data: Path) -> dict[str, str]:
    address = f"http://127.0.0.1:{provider.subject.port}" if provider else "http://127.0.0.1:9"
    return {
        "NANO_BANANA_API_KEY": "the-key-of-the-benchmark",
        "NANO_BANANA_API_URL": address,
        "NANO_BANANA_UPLOAD_URL": address,
        "NANO_BANANA_WEBHOOK_KEY": WEBHOOK_KEY,
        "NANO_BANANA_CREATES_PER_10S": ENOUGH,
        "MAX_CONCURRENT_GENERATIONS": ENOUGH,
        "RATE_LIMIT_PER_MINUTE": "1000000000",
        "BROKER_CONNECTIONS_PER_PEER": ENOUGH,
        "BROKER_DOWNLOAD_ALLOW": address.removeprefix("http://"),
        "BROKER_TUNNEL_API": "http://127.0.0.1:9",
        "WEBHOOK_BASE_URL": f"http://127.0.0.1:{port}",
        "BROKER_DATA_DIR": str(data),
        "BROKER_PORT": str(port),
        "SECRET_KEY": SECRET,
    }


@dataclass(frozen=True)
class Provider:
    """The running provider, and its controls."""

    subject: Subject

    async def control(self, action: str, **options: Any) -> Any:
        return await to_thread.run_sync(call, self.subject.port, "POST", f"/control/{action}", options)


@dataclass(frozen=True)
class Broker:
    """The running broker. data: its data folder."""

    subject: Subject
    data: Path

    @property
    def database(self) -> Path:
        return self.data / "broker.db"

    async def create(self, prompt: str = "a red bicycle", **fields: Any) -> str:
        """Create a task and return its id."""
        answer = await to_thread.run_sync(
            call, self.subject.port, "POST", "/api/generate/image", {"prompt": prompt, **fields}
        )
        return str(answer["taskId"])

    async def get(self, path: str) -> Any:
        return await to_thread.run_sync(call, self.subject.port, "GET", path, None)

    async def answer_bytes(self, path: str) -> int:
        """Return the size of an answer's body."""
        return await to_thread.run_sync(_body_bytes, self.subject.port, path)

    async def etag(self, path: str) -> str:
        return await to_thread.run_sync(_etag, self.subject.port, path)

    async def wait_for(self, task_id: str, *statuses: str, seconds: float = 30) -> None:
        """Wait until the task has one of the statuses."""
        ends_at = time.monotonic() + seconds
        while (await self.get(f"/api/task/{task_id}"))["data"]["status"] not in statuses:
            if time.monotonic() > ends_at:
                raise TimeoutError(f"the task did not get {' or '.join(statuses)}")


def call(port: int, method: str, path: str, document: Any) -> Any:
    """Send one request and return the JSON of its answer."""
    data = None if document is None else json.dumps(document).encode()
    request = Request(f"http://127.0.0.1:{port}{path}", data=data, method=method)
    request.add_header("Content-Type", "application/json")
    with urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def _etag(port: int, path: str) -> str:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return str(answer.headers["ETag"])


def _body_bytes(port: int, path: str) -> int:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return len(answer.read())
