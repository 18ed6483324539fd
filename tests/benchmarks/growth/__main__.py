"""Growth curves: `python -m tests.benchmarks.growth` seeds databases and draws docs/growth-*.svg.

`--sizes 1000,100000,1000000,10000000` and `--in-flight 10,1000,100000` say how many tasks; `--postgres` takes a
Postgres of its own instead of SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Final

from storage.lists.newest_tasks import NewestTasks
from storage.sql.database import Database
from storage.sql.postgres import PostgresDatabase
from storage.sql.scope import EVERYTHING
from storage.sql.sqlite import SqliteDatabase
from storage.states import ACTIVE_STATES, FINAL_STATES, TaskState
from storage.task_queue import TaskQueue
from storage.tasks import Lease, Tasks
from tests.benchmarks.engines.company import new_task
from tests.benchmarks.engines.measuring import say
from tests.benchmarks.growth.curves import Curve, draw_curves
from tests.benchmarks.growth.seeding import PROVIDER, seed_postgres, seed_sqlite
from tests.support.servers.postgres import running

DOCS: Final = Path(__file__).parents[3] / "docs"
FEW_STORED: Final = 1000
FEW_IN_FLIGHT: Final = 1000
SAMPLE: Final = 500
MIN_CALLS: Final = 15
CALL_SECONDS: Final = 0.5
"""Each statement is measured for so long, or `MIN_CALLS` times."""

Call = Callable[[], Awaitable[object]]


async def _calls(database: Database) -> dict[str, Call]:
    tasks, newest = Tasks(database), NewestTasks(database)
    middle = "SELECT count(*) / 2 FROM tasks"
    rows = await database.fetch(f"SELECT id FROM tasks ORDER BY id LIMIT :n OFFSET ({middle})", n=SAMPLE)
    ids = cycle([row["id"] for row in rows])
    states = [state for state in TaskState if state != TaskState.QUEUED]

    def lease() -> tuple[float, Lease]:
        now = time.time()
        return now, Lease(holder="growth", until=now)  # it ends at once, so that there is always as much to claim

    async def claim() -> object:
        now, one = lease()
        return await tasks.claim(TaskState.WAITING, now=now, lease=one, limit=10)

    async def claim_queued() -> object:
        now, one = lease()
        return await TaskQueue(database).claim(PROVIDER, now=now, lease=one, limit=10)

    return {
        "read of a task": lambda: tasks.get(next(ids)),
        "page of a list": lambda: newest.list_newest(EVERYTHING, status=None, limit=21, before=None),
        "page of a status": lambda: newest.list_newest(EVERYTHING, status="failed", limit=21, before=None),
        "page of a search, no match": lambda: newest.search_newest(
            EVERYTHING, status=None, limit=21, before=None, model=None, words=["zebra"]
        ),
        "agenda": lambda: tasks.get_due_work(states, [PROVIDER], time.time()),
        "durations for an ETA": lambda: tasks.recent_durations(PROVIDER, "nano-banana"),
        "counts for /metrics": lambda: tasks.count_by_state(ACTIVE_STATES + FINAL_STATES, at_most=100_000),
        "claim of ten": claim,
        "claim of ten queued": claim_queued,
        "insert": lambda: database.transact(tasks.insert_task(new_task())),
    }


async def _measure(database: Database) -> dict[str, float]:
    """Return the median milliseconds of each call."""
    found = {}
    for name, call in (await _calls(database)).items():
        for _ in range(3):
            await call()
        took: list[float] = []
        began = time.perf_counter()
        while len(took) < MIN_CALLS or time.perf_counter() - began < CALL_SECONDS:
            at = time.perf_counter()
            await call()
            took.append(time.perf_counter() - at)
        found[name] = statistics.median(took) * 1000
    return found


@asynccontextmanager
async def _seeded(folder: Path | None, stored: int, in_flight: int) -> AsyncIterator[tuple[Database, float]]:
    """Open a database with so many tasks: in a folder, or in a Postgres of its own."""
    if folder is None:
        with running(durable=True) as server:
            url = await server.fresh()
            seconds = await seed_postgres(url, stored, in_flight)
            async with PostgresDatabase(url) as postgres:
                yield postgres, seconds
        return
    with tempfile.TemporaryDirectory(dir=folder) as data:
        path = Path(data) / "broker.db"
        seconds = await seed_sqlite(path, stored, in_flight)
        async with SqliteDatabase(path) as sqlite:
            yield sqlite, seconds


async def draw(folder: Path | None, name: str, title: str, sizes: list[tuple[int, int, int]]) -> None:
    """Measure and write a picture. sizes: (x, stored, in flight)."""
    curves: dict[str, list[tuple[float, float]]] = {}
    seeding: dict[str, float] = {}
    for x, stored, in_flight in sizes:
        async with _seeded(folder, stored, in_flight) as (database, seconds):
            seeding[str(x)] = round(seconds, 1)
            found = await _measure(database)
        say(f"{title}: {x}; seeded in {seconds:.1f} s; " + ", ".join(f"{k} {v:.2f} ms" for k, v in found.items()))
        for what, value in found.items():
            curves.setdefault(what, []).append((x, round(value, 4)))
    store = "Postgres" if folder is None else "SQLite"
    notes = {"store": store, "measured": datetime.now(UTC).date().isoformat(), "seeded in seconds": seeding}
    shown: dict[str, Curve] = dict(curves)
    file = DOCS / f"{name}{'-postgres' if folder is None else ''}.svg"
    file.write_text(draw_curves(f"{title}, {store}", "tasks", "ms", shown, notes))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,100000,1000000", help="numbers of stored tasks")
    parser.add_argument("--in-flight", default="10,1000,100000", help="numbers of tasks in flight")
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the databases")
    options = parser.parse_args()
    folder = None if options.postgres else options.folder
    stored = [(count, count, FEW_IN_FLIGHT) for count in map(int, options.sizes.split(","))]
    in_flight = [(count, FEW_STORED, count) for count in map(int, options.in_flight.split(","))]
    await draw(folder, "growth-in-flight", f"Tasks in flight, with {FEW_STORED} stored", in_flight)
    await draw(folder, "growth-stored", f"Stored tasks, with {FEW_IN_FLIGHT} in flight", stored)


if __name__ == "__main__":
    asyncio.run(main())
