"""The paths every order takes through Postgres: `python -m tests.benchmarks.engines.postgres_paths`.

What the broker's own code adds to the driver (a read, a claim, a create, beside bare asyncpg with the same statement),
and whole lives of the engine without a network, in one and two processes, with SQLite beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import asyncpg

from storage.sql.migrate import upgrade_schema
from storage.sql.postgres import PostgresDatabase
from storage.sql.postgres_transaction import parameter_values, to_postgres
from storage.states import TaskState
from storage.tasks import DUE_CHANNEL, Lease, Task, Tasks
from tests.benchmarks.engines.company import new_task
from tests.benchmarks.engines.lives import Counts, Upstream, live
from tests.benchmarks.engines.measuring import Child, interleaved, per_second, say, table
from tests.support.servers.postgres import Postgres, running
from tests.support.statements import named_params

STORED: Final = 20_000
POOL: Final = 10
ROUNDS: Final = 5
BATCHES: Final = (1, 10, 32)
CREATORS: Final = (1, 8, 32)
WIDE: Final = Upstream()

Work = dict[str, Callable[[], Awaitable[int]]]
"""What is done once, by the name of the way it is done; returns the amount."""


class Raw:
    """asyncpg alone: a pool, and the statements as the broker writes them."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def run(self, sql: str, params: dict[str, Any]) -> Sequence[Any]:
        query = to_postgres(sql)
        async with self._pool.acquire() as connection:
            records: Sequence[Any] = await connection.fetch(query.text, *parameter_values(query, params))
        return records


async def stored(url: str, rows: int) -> list[str]:
    """Tasks in the state `waiting`, none of them ever due by itself."""
    async with PostgresDatabase(url, connections=2) as database:
        await upgrade_schema(database, time.time())
        tasks = Tasks(database)
        seed = new_task()
        await database.transact(tasks.insert_task(seed))
        changed = {"id": "'task_' || md5(n::text)", "batch": "'task_' || md5(n::text)", "state": "'waiting'"}
        changed["due_at"] = "n::float"
        names = {f.name: f'"{f.name}"' for f in fields(Task)}
        columns, values = ", ".join(names.values()), ", ".join((names | changed).values())
        copies = f"INSERT INTO tasks ({columns}) SELECT {values} FROM tasks, generate_series(1, {rows}) AS n"
        await database.execute(copies)
        await database.execute("DELETE FROM tasks WHERE id = :id", id=seed.id)
        await database.execute("ANALYZE tasks")
        return [row["id"] for row in await database.fetch("SELECT id FROM tasks")]


# -- reads


@asynccontextmanager
async def reading(url: str, ids: list[str], connections: int = POOL) -> AsyncIterator[Work]:
    """Yield three ways to read one task: ours, with asyncpg's pool, and on a connection that is free."""
    async with (
        PostgresDatabase(url, connections=connections) as database,
        asyncpg.create_pool(url, max_size=connections) as pool,
    ):
        tasks = Tasks(database)

        async def ours() -> int:
            await tasks.get(random.choice(ids))
            return 1

        async def pooled() -> int:
            async with pool.acquire() as connection:
                await connection.fetchrow("SELECT * FROM tasks WHERE id = $1", random.choice(ids))
            return 1

        free = [await asyncpg.connect(url) for _ in range(connections)]

        async def alone() -> int:
            connection = free.pop()
            await connection.fetchrow("SELECT * FROM tasks WHERE id = $1", random.choice(ids))
            free.append(connection)
            return 1

        yield {"ours": ours, "pooled": pooled, "alone": alone}
        for connection in free:
            await connection.close()


async def reads(url: str, ids: list[str], seconds: float) -> list[list[str]]:
    rows = []
    async with reading(url, ids) as ways:
        for readers in (1, POOL):
            results = await _rates(ways, readers, seconds)
            rates = [f"{results[name]:.0f}" for name in ("ours", "pooled", "alone")]
            ratios = [f"{results['ours'] / results[name]:.2f}" for name in ("pooled", "alone")]
            rows.append([str(readers), *rates, *ratios])
    return rows


READ_HEAD: Final = ("readers", "Tasks.get /s", "asyncpg pool /s", "asyncpg connection /s", "÷ pool", "÷ connection")


async def _rates(ways: Work, workers: int, seconds: float) -> dict[str, float]:
    async def rate(name: str) -> float:
        return await per_second(ways[name], workers, seconds)

    return await interleaved({name: lambda name=name: rate(name) for name in ways}, ROUNDS)  # type: ignore[misc]


# -- claims

BARE_CLAIM: Final = """WITH due AS MATERIALIZED (SELECT id FROM tasks
    WHERE state = $1 AND due_at <= $2 AND lease_until <= $2 ORDER BY due_at LIMIT $5 FOR UPDATE SKIP LOCKED)
    UPDATE tasks SET leased_by = $3, lease_until = $4, version = version + 1
    WHERE id IN (SELECT id FROM due) RETURNING *"""


@asynccontextmanager
async def claiming(url: str, batch: int) -> AsyncIterator[Work]:
    """Yield two ways to claim tasks. The lease of a claim ends at once, so that there is always as much to claim."""
    async with PostgresDatabase(url, connections=POOL) as database, asyncpg.create_pool(url, max_size=POOL) as pool:
        tasks = Tasks(database)

        async def ours() -> int:
            now = time.time()
            lease = Lease(holder="bench", until=now)
            return len(await tasks.claim(TaskState.WAITING, now=now, lease=lease, limit=batch))

        async def bare() -> int:
            now = time.time()
            async with pool.acquire() as connection:
                return len(await connection.fetch(BARE_CLAIM, "waiting", now, "bench", now, batch))

        yield {"ours": ours, "bare": bare}


async def claims(url: str, seconds: float) -> list[list[str]]:
    """Claimed tasks per second."""
    rows = []
    for claimers in (1, 8):
        for batch in BATCHES:
            async with claiming(url, batch) as ways:
                results = await _rates(ways, claimers, seconds)
            ratio = f"{results['ours'] / results['bare']:.2f}"
            rows.append([str(claimers), str(batch), f"{results['ours']:.0f}", f"{results['bare']:.0f}", ratio])
    return rows


CLAIM_HEAD: Final = ("claimers", "at most", "Tasks.claim, tasks/s", "asyncpg alone, tasks/s", "ratio")


# -- creates


async def creates(url: str, seconds: float) -> list[list[str]]:
    rows = []
    async with PostgresDatabase(url, connections=POOL) as database, asyncpg.create_pool(url, max_size=POOL) as pool:
        tasks = Tasks(database)

        async def ours() -> int:
            await database.transact(tasks.insert_task(new_task()), wake=(DUE_CHANNEL,))
            return 1

        raw = Raw(pool)

        async def bare() -> int:
            statement = tasks.insert_task(new_task())
            await raw.run(statement.sql, named_params(statement))
            return 1

        for creators in CREATORS:
            results = await _rates({"ours": ours, "bare": bare}, creators, seconds)
            ratio = f"{results['ours'] / results['bare']:.2f}"
            rows.append([str(creators), f"{results['ours']:.0f}", f"{results['bare']:.0f}", ratio])
    return rows


CREATE_HEAD: Final = ("creators", "one task a transaction, and a wake /s", "asyncpg alone /s", "ratio")


# -- lives


async def _lives_per_second(url: str, lives: int, processes: int, counts: list[Counts]) -> float:
    """From the first order to the last end, by the tasks' own moments."""
    children = [Child(live, url, WIDE, [0.0] * (lives // processes)) for _ in range(processes)]
    await asyncio.gather(*(child.ready() for child in children))
    begun = time.time()
    for child in children:
        child.go()
    results = await asyncio.gather(*(child.result() for child in children))
    counts.extend(results)
    return lives / (await _last_end(url) - begun)


async def _last_end(url: str) -> float:
    connection = await asyncpg.connect(url)
    try:
        last: float = await connection.fetchval("SELECT max(ended_at) FROM tasks WHERE state = 'succeeded'")
        return last
    finally:
        await connection.close()


async def lives_on_postgres(server: Postgres, lives: int, processes: int, counts: list[Counts]) -> float:
    url = await server.fresh()
    async with PostgresDatabase(url, connections=2) as database:
        await upgrade_schema(database, time.time())
    return await _lives_per_second(url, lives, processes, counts)


async def lives_on_sqlite(lives: int, parent: Path | None = None) -> float:
    """Return the rate. parent: of the database's folder."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        path = Path(folder) / "broker.db"
        child = Child(live, f"sqlite:///{path}", WIDE, [0.0] * lives)
        await child.ready()
        child.go()
        begun = time.time()
        await child.result()
        return lives / (_last_end_of_file(path) - begun)


def _last_end_of_file(path: Path) -> float:
    with sqlite3.connect(path) as connection:
        last: float = connection.execute("SELECT max(ended_at) FROM tasks").fetchone()[0]
    connection.close()
    return last


async def whole_lives(server: Postgres, lives: int, rounds: int) -> list[list[str]]:
    counts: dict[str, list[Counts]] = {}

    def on_postgres(processes: int) -> tuple[str, Callable[[], Awaitable[float]]]:
        name = f"Postgres, {processes} process{'es' if processes > 1 else ''}"
        results = counts.setdefault(name, [])
        return name, lambda: lives_on_postgres(server, lives, processes, results)

    results = await interleaved(
        dict([on_postgres(1), on_postgres(2), ("SQLite, 1 process", lambda: lives_on_sqlite(lives))]), rounds
    )
    base = next(iter(results.values()))
    rows = []
    for name, rate in results.items():
        asked = counts.get(name, [])
        each = [sum(getattr(one, f.name) for one in asked) / lives / rounds for f in fields(Counts)]
        columns = [f"{each[0]:.1f}", f"{each[1]:.1f}", f"{each[2]:.1f}", f"{each[3] * 1000:.1f}"] if asked else [""] * 4
        rows.append([name, f"{rate:.0f}", f"{rate / base:.2f}", *columns])
    return rows


LIFE_HEAD: Final = (
    "database",
    "lives/s",
    "× Postgres, 1 process",
    "reads per life",
    "transactions",
    "statements in them",
    "processor ms, Postgres' own not counted",
)


async def main(seconds: float, lives: int) -> None:
    with running() as server:
        url = await server.fresh()
        ids = await stored(url, STORED)
        say(f"\n### Reading one of {STORED} tasks in Postgres\n")
        say(table(READ_HEAD, await reads(url, ids, seconds)))
        say("\n### Claiming\n")
        say(table(CLAIM_HEAD, await claims(url, seconds)))
        say("\n### Creating\n")
        say(table(CREATE_HEAD, await creates(url, seconds)))
        say(f"\n### Whole lives without a network, {lives} at a time\n")
        say(table(LIFE_HEAD, await whole_lives(server, lives, 3)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engines.postgres_paths")
    parser.add_argument("seconds", type=float, nargs="?", default=1.0, help="per round")
    parser.add_argument("--lives", type=int, default=2000)
    chosen = parser.parse_args()
    asyncio.run(main(chosen.seconds, chosen.lives))
