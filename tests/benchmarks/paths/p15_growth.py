"""P15: the same paths with few and with many stored tasks."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from storage.sql.sqlite import SqliteDatabase
from storage.states import TaskState
from storage.tasks import Lease, Tasks
from tests.benchmarks.engines.company import new_task
from tests.benchmarks.engines.measuring import per_second
from tests.benchmarks.results import Measured, Row, number, ratio_at_least, ratio_at_most
from tests.benchmarks.support.bench import Bench
from tests.benchmarks.support.client import Client, connected, milliseconds
from tests.benchmarks.support.load import http_request
from tests.benchmarks.support.seed import Seeded, seeded

PATH: Final = "P15"
FEW: Final = 1000
REQUESTS: Final = 60
DUE: Final = 200
READS: Final = {"poll": "/api/task/{}", "list": "/api/tasks?limit=20", "metrics": "/metrics"}
MAX_READ_RATIO: Final = 2.2
MAX_WRITE_RATIO: Final = 1.3


async def measure(bench: Bench) -> list[Row]:
    many = bench.options.size(100_000, 1_000_000)
    few_seed, many_seed = await seeded(bench, FEW), await seeded(bench, many)
    few_data = await few_seed.copy(bench.folder("growth") / "data")
    many_data = await many_seed.copy(bench.folder("growth") / "data")
    few_name, many_name = number(FEW), number(many)
    rows = []
    for what, (small, large) in (await _reads(bench, (few_data, few_seed), (many_data, many_seed))).items():
        rows.append(
            Row(
                path=PATH,
                what=f"{what}, {many_name} stored tasks",
                reference=milliseconds(*small, name=few_name),
                ours=milliseconds(*large),
                goal=ratio_at_most(MAX_READ_RATIO),
            )
        )
    for what, (small, large) in (await _writes(bench, few_data, many_data)).items():
        rows.append(
            Row(
                path=PATH,
                what=f"{what}, {many_name} stored tasks",
                reference=Measured(name=few_name, unit="/s", values=tuple(small)),
                ours=Measured(unit="/s", values=tuple(large)),
                goal=ratio_at_least(1 / MAX_WRITE_RATIO),
                on_disk=True,
            )
        )
    return rows


Sides = dict[str, tuple[list[float], list[float]]]
"""Values of few and of many stored tasks, by what was measured."""


async def _reads(bench: Bench, few: tuple[Path, Seeded], many: tuple[Path, Seeded]) -> Sides:
    """Return the seconds of a request, one at a time."""
    async with AsyncExitStack() as stack:
        clients = []
        for data, _ in (few, many):
            broker = await stack.enter_async_context(bench.broker(None, data=data))
            clients.append(await stack.enter_async_context(connected(broker.subject.port)))
        found: Sides = {}
        for what, path in READS.items():
            ways = {
                "few": partial(_median_seconds, clients[0], path, few[1].ids),
                "many": partial(_median_seconds, clients[1], path, many[1].ids),
            }
            results = await bench.interleave(ways, warm_up=True)
            found[what] = (results["few"], results["many"])
    return found


async def _median_seconds(client: Client, path: str, ids: Sequence[str]) -> float:
    took = []
    for _ in range(REQUESTS):
        request = http_request("GET", path.format(random.choice(ids)))
        began = time.perf_counter()
        status, _ = await client.send(request)
        took.append(time.perf_counter() - began)
        if status != 200:
            raise ValueError(f"{path}: {status}")
    return sorted(took)[REQUESTS // 2]


async def _writes(bench: Bench, few: Path, many: Path) -> Sides:
    """Return claims and inserts per second, eight at a time, through the store alone."""
    async with SqliteDatabase(few / "broker.db") as small, SqliteDatabase(many / "broker.db") as large:
        found: Sides = {}
        for what, work in (("insert of a task", _insert), ("claim of ten tasks", _claim)):
            for database in (small, large) if work is _claim else ():
                await _make_due(database)
            ways = {
                "few": partial(per_second, partial(work, small), 8, bench.options.seconds / 2),
                "many": partial(per_second, partial(work, large), 8, bench.options.seconds / 2),
            }
            results = await bench.interleave(ways, warm_up=True)
            found[what] = (results["few"], results["many"])
    return found


async def _insert(database: SqliteDatabase) -> int:
    await database.transact(Tasks(database).insert_task(new_task()))
    return 1


async def _make_due(database: SqliteDatabase) -> None:
    due = [replace(new_task(), state=TaskState.WAITING, due_at=1.0) for _ in range(DUE)]
    await database.transact(*(Tasks(database).insert_task(task) for task in due))


async def _claim(database: SqliteDatabase) -> int:
    """Claim ten tasks; the lease ends at once, so that there is always as much to claim."""
    now = time.time()
    lease = Lease(holder="bench", until=now)
    await Tasks(database).claim(TaskState.WAITING, now=now, lease=lease, limit=10)
    return 1
