"""P5: from the create of a task to the answer of its waiter, beyond the provider's own time, on an idle broker."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.results import Row, value_at_most
from tests.benchmarks.support.bench import Bench
from tests.benchmarks.support.client import Client, connected, milliseconds, percentile

PATH: Final = "P5"
PROVIDER_SECONDS: Final = 0.05
PAUSE_SECONDS: Final = 0.03
WARM_UP: Final = 5


@dataclass(frozen=True, kw_only=True)
class Life:
    """Monotonic moments of one task."""

    created_at: float
    seen_at: float


async def measure(bench: Bench) -> list[Row]:
    count = bench.options.size(20, 100)
    async with (
        bench.provider(delay=PROVIDER_SECONDS) as provider,
        bench.broker(provider) as broker,
        connected(broker.subject.port) as creator,
        connected(broker.subject.port) as waiter,
    ):
        for _ in range(WARM_UP):
            await _live(creator, waiter)
        beyond: list[list[float]] = []
        after_callback: list[list[float]] = []
        for _ in range(bench.options.rounds):
            await bench.calibrate()
            lives = dict([await _live(creator, waiter) for _ in range(count)])
            jobs = {task: (received, called) for task, received, called, _ in await provider.control("jobs")}
            beyond.append(
                [life.seen_at - life.created_at - jobs[task][1] + jobs[task][0] for task, life in lives.items()]
            )
            after_callback.append([life.seen_at - jobs[task][1] for task, life in lives.items()])
        await bench.calibrate()

    def row(what: str, rounds: list[list[float]], percent: float, bound: float) -> Row:
        values = milliseconds(*(percentile(each, percent) for each in rounds))
        return Row(path=PATH, what=what, ours=values, goal=value_at_most(bound), on_disk=True)

    total = "create to `completed` at the waiter, beyond the provider's time"
    return [
        row(f"{total}, p50", beyond, 50, 8),
        row(f"{total}, p99", beyond, 99, 20),
        row("callback to `completed` at the waiter, p50", after_callback, 50, 3),
    ]


async def _live(creator: Client, waiter: Client) -> tuple[str, Life]:
    """Create a task and wait for it with long polls; return its id and its moments."""
    created_at = time.monotonic()
    task_id = (await creator.call("POST", "/api/generate/image", {"prompt": "a red bicycle"}))["taskId"]
    while (await waiter.call("GET", f"/api/task/{task_id}?wait=30"))["data"]["status"] != "completed":
        pass
    life = Life(created_at=created_at, seen_at=time.monotonic())
    await asyncio.sleep(PAUSE_SECONDS)
    return task_id, life
