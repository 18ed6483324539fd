"""P9: tasks in flight: their memory and processor time, and the start with many of them."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from anyio import to_thread

from tests.benchmarks.paths.p03_create import create_requests
from tests.benchmarks.results import Measured, Row, number, value_at_most
from tests.benchmarks.support.bench import Bench, Broker
from tests.benchmarks.support.client import wait_until
from tests.benchmarks.support.load import counted_load, write_requests
from tests.benchmarks.support.seed import PATIENT, seeded

PATH: Final = "P9"
TASKS: Final = 1000
SETTLE_SECONDS: Final = 2.0


async def measure(bench: Bench) -> list[Row]:
    seconds = bench.options.size(3, 20)
    creates = write_requests(bench.folder("in-flight") / "creates", create_requests(TASKS))
    grown, shares = [], []
    for _ in range(bench.options.size(1, 3)):
        await bench.calibrate()
        async with bench.provider(delay=None) as provider, bench.broker(provider, variables=PATIENT) as broker:
            await counted_load(broker.subject, creates, TASKS // 5)  # the code is loaded, the caches are filled
            await _submitted(broker, TASKS // 5)
            await asyncio.sleep(SETTLE_SECONDS)
            idle = broker.subject.rss_mib()
            await counted_load(broker.subject, creates, TASKS)
            await _submitted(broker, TASKS + TASKS // 5)
            await asyncio.sleep(SETTLE_SECONDS)
            grown.append(broker.subject.rss_mib() - idle)
            used = broker.subject.cpu_seconds()
            await asyncio.sleep(seconds)
            shares.append((broker.subject.cpu_seconds() - used) / seconds * 100)
    await bench.calibrate()
    what = f"{TASKS} tasks in flight"
    return [
        Row(
            path=PATH,
            what=f"{what}: memory",
            ours=Measured(unit="MiB", values=tuple(grown)),
            goal=value_at_most(1.0),
            is_timed=False,
            note=f"beyond that of {TASKS // 5} tasks in flight",
        ),
        Row(path=PATH, what=f"{what}: processor", ours=Measured(unit="%", values=tuple(shares))),
        await _restart(bench),
    ]


async def _submitted(broker: Broker, count: int) -> None:
    async def submitted() -> bool:
        return await to_thread.run_sync(_waiting, broker.database) >= count

    await wait_until(submitted, every_seconds=0.1, seconds=120)


def _waiting(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        found: int = connection.execute("SELECT count(*) FROM tasks WHERE state = 'waiting'").fetchone()[0]
    return found


async def _restart(bench: Bench) -> Row:
    count, ready = bench.options.size(20_000, 100_000), []
    seed = await seeded(bench, count, "waiting")
    data = await seed.copy(bench.folder("restart") / "data")
    for _ in range(bench.options.few_rounds):
        await bench.calibrate()
        async with (
            bench.provider(delay=None) as provider,
            bench.broker(provider, data=data, variables=PATIENT) as broker,
        ):
            ready.append(broker.subject.ready_seconds)
    what = f"restart with {number(count)} tasks in flight"
    return Row(path=PATH, what=what, ours=Measured(unit="s", values=tuple(ready)), goal=value_at_most(5.0))
