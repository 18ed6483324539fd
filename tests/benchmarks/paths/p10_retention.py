"""P10: many tasks whose retention ends at the same moment, cleaned while polls and creates go on."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anyio import to_thread

from tests.benchmarks.engines import retention
from tests.benchmarks.paths.p03_create import LIKE_KIE, PROMPTS, create_requests
from tests.benchmarks.results import Measured, Row, number, ratio_at_most, value_at_least, value_at_most
from tests.benchmarks.support.bench import Bench, Broker
from tests.benchmarks.support.client import milliseconds, percentile, wait_until
from tests.benchmarks.support.load import Load, http_request, steady_background, write_requests
from tests.benchmarks.support.seed import seeded
from tests.support.servers.postgres import running

PATH: Final = "P10"
KEPT: Final = 1000
"""Tasks that are not due, of which the polls are."""
POLLS_PER_SECOND: Final = 200
CREATES_PER_SECOND: Final = 20
CALM_SECONDS: Final = 3.0
MAX_SECONDS: Final = 600.0
START_SECONDS: Final = 8.0
SLOW_START_SECONDS: Final = 40.0
UPDATES_PER_SECOND: Final = 40_000
POSTGRES_TASKS: Final = 50_000
GOAL: Final = 1_000_000 / 60


class TooSlow(Exception):
    """The retention ended before the broker and its callers were ready."""


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """before, during: (polls, creates). wal: largest size in bytes."""

    seconds: float
    before: tuple[Load, Load]
    during: tuple[Load, Load]
    wal: float


async def measure(bench: Bench) -> list[Row]:
    count = bench.options.size(10_000, 1_000_000)
    await bench.calibrate()
    try:
        found = await _clean(bench, count, START_SECONDS)
    except TooSlow:
        found = await _clean(bench, count, SLOW_START_SECONDS)
    expired = count - KEPT
    await bench.calibrate()
    what = f"{number(expired)} expired tasks"
    rows = [
        Row(
            path=PATH,
            what=f"{what} cleaned, SQLite",
            ours=Measured(unit="/s", values=(expired / found.seconds,)),
            goal=value_at_least(GOAL),
            note=f"{found.seconds:.1f} s beside {POLLS_PER_SECOND} polls/s and {CREATES_PER_SECOND} creates/s; "
            "the copies have no files",
            on_disk=True,
        ),
        Row(
            path=PATH,
            what="poll p99 while tasks are cleaned",
            reference=milliseconds(found.before[0].p99, name="before"),
            ours=milliseconds(found.during[0].p99),
            goal=ratio_at_most(1.5),
        ),
        Row(
            path=PATH,
            what="create p99 while tasks are cleaned",
            reference=milliseconds(found.before[1].p99, name="before"),
            ours=milliseconds(found.during[1].p99),
            goal=value_at_most(25),
            on_disk=True,
        ),
        Row(
            path=PATH,
            what="largest WAL",
            ours=Measured(unit="MB", values=(found.wal / 1e6,)),
            goal=value_at_most(64),
            is_timed=False,
        ),
    ]
    return [*rows, *([await _on_postgres()] if bench.options.is_long else [])]


async def _clean(bench: Bench, count: int, start_seconds: float) -> Cleaning:
    seed, folder = await seeded(bench, count), bench.folder("retention")
    data = await seed.copy(folder / "data")
    kept = seed.ids[:KEPT]
    polls = write_requests(folder / "polls", (http_request("GET", f"/api/task/{name}") for name in kept))
    creates = write_requests(folder / "creates", create_requests(PROMPTS))
    due_at = time.time() + start_seconds + count / UPDATES_PER_SECOND
    await to_thread.run_sync(_set_due, data / "broker.db", kept, due_at)
    async with (
        bench.provider(delay=None) as provider,
        bench.broker(provider, data=data, variables=LIKE_KIE) as broker,
    ):
        if (left := due_at - CALM_SECONDS - time.time()) < 0:
            raise TooSlow
        await asyncio.sleep(left)
        async with _beside(broker, polls, creates) as stop:
            await asyncio.sleep(due_at - time.time())
            before = await stop()
        async with _beside(broker, polls, creates) as stop, _wal_watched(broker) as sizes:

            async def clean() -> bool:
                return await to_thread.run_sync(_is_clean, broker.database)

            await wait_until(clean, every_seconds=0.1, seconds=MAX_SECONDS)
            seconds = time.time() - due_at
            during = await stop()
        if (expired := await to_thread.run_sync(_count_expired, broker.database)) < count - KEPT:
            raise ValueError(f"{expired} tasks are expired, and {count - KEPT} were due")
    return Cleaning(seconds=seconds, before=before, during=during, wal=max(sizes, default=0.0))


@asynccontextmanager
async def _beside(
    broker: Broker, polls: Path, creates: Path
) -> AsyncIterator[Callable[[], Awaitable[tuple[Load, Load]]]]:
    """Poll and create while the block runs; what is yielded stops both and returns their loads."""
    async with (
        steady_background(broker.subject, polls, POLLS_PER_SECOND) as stop_polls,
        steady_background(broker.subject, creates, CREATES_PER_SECOND) as stop_creates,
    ):

        async def stop() -> tuple[Load, Load]:
            return await stop_polls(), await stop_creates()

        yield stop


@asynccontextmanager
async def _wal_watched(broker: Broker) -> AsyncIterator[list[float]]:
    """Yield the sizes of the WAL while the block runs."""
    wal, sizes = broker.database.with_name(broker.database.name + "-wal"), [0.0]

    async def watch() -> None:
        while True:
            sizes.append(await to_thread.run_sync(_size, wal))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield sizes
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _size(file: Path) -> float:
    return file.stat().st_size if file.exists() else 0.0


def _set_due(database: Path, kept: Sequence[str], due_at: float) -> None:
    """Let the retention of all tasks end at that moment, but for those that are kept.

    They ended days ago: what is due earlier than the settings say is kept as long as they say.
    """
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -1000000")
        connection.execute("BEGIN")
        aged = "UPDATE tasks SET due_at = ?, ended_at = ended_at - 172800 WHERE state = 'succeeded'"
        connection.execute(aged, (due_at,))
        later = [(due_at + 86_400, name) for name in kept]
        connection.executemany("UPDATE tasks SET due_at = ? WHERE id = ?", later)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _is_clean(database: Path) -> bool:
    sql = "SELECT 1 FROM tasks WHERE state = 'succeeded' AND due_at <= ? LIMIT 1"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        return connection.execute(sql, (time.time(),)).fetchone() is None


def _count_expired(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM tasks WHERE state = 'expired'").fetchone()
    return int(count)


async def _on_postgres() -> Row:
    """The worker alone, without HTTP, on a Postgres with half as many expired tasks that are remembered."""
    with running(durable=True) as server:
        bench = retention.Bench(server=server, rows=POSTGRES_TASKS, calm=CALM_SECONDS, remembered=True)
        await bench.batched(await bench.seeded(), 1)
    cost = bench.costs[0]
    p99s = [percentile(values, 99) * 1000 for values in cost.polls]
    return Row(
        path=PATH,
        what=f"{number(POSTGRES_TASKS)} expired tasks cleaned, Postgres",
        ours=Measured(unit="/s", values=(cost.rows / cost.seconds,)),
        goal=value_at_least(GOAL),
        note=f"poll p99 {p99s[0]:.1f} ms before, {p99s[1]:.1f} ms during",
        on_disk=True,
    )
