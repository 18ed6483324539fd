"""Cost of deleting a day's tasks, also for polls and creates: `python -m tests.benchmarks.engines.retention`.

Three ways on copies of one Postgres database, in which as many tasks as you say have ended long enough ago:

* batched: the broker's own worker, in one and two processes. It works twice on a task: prompt and images are deleted
  when retention is over, the row itself a week later. Both are measured, each beside pollers and creators.
* one DELETE of everything in one transaction, for comparison; no files, no week in which a task is known as expired.
* a prototype with tables partitioned by day, of which the oldest is dropped; and what a look-up by id alone costs when
  the row may be in any partition. Nothing is remembered of what is dropped, which the broker would have to keep apart.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg

from broker.bootstrap import load_settings, open_services
from broker.clock import SystemClock
from storage.sql.migrate import upgrade_schema
from storage.sql.postgres import PostgresDatabase
from tests.benchmarks.engines.company import CREATES, POLLS, Seen, keep_company
from tests.benchmarks.engines.measuring import Child, Side, cut, interleaved, mb, ms, say, table, task_id
from tests.support.servers.postgres import Postgres, running

DAY: Final = 86_400.0
LATER: Final = 8 * DAY
"""When the tombstones are due, too."""
TABLES: Final = ("tasks", "attempts", "images")
PARTITIONS: Final = (2, 9, 32)
READER_SECONDS: Final = 2.0
LOOK_UPS: Final = 300

_TASK: Final = """(id, batch, caller, state, due_at, lease_until, leased_by, version, provider, key_id, candidates,
    routes, priority, texts, turns, origin, tokens, model, mode, prompt, aspect_ratio,
    params, "references", attempt, step_retries, job_id, expects_callback, outputs, deadline_at,
    checked_at, error_retryable, billed, cost, created_at, updated_at, ended_at, entered_at, sent_at, finished_at)"""
_ATTEMPT: Final = "(task_id, number, provider, key_id, job_id, sent_at, ended_at, outcome, billed, cost)"
_ATTEMPTS_OF: Final = f"""INSERT INTO attempts {_ATTEMPT}
    SELECT id, 1, provider, 'default', job_id, created_at, ended_at, 'succeeded', 'yes', 4 FROM tasks"""

SEED: Final = (
    f"""INSERT INTO tasks {_TASK} SELECT name, name, 'local', 'succeeded', at + {{day}}, 0, '', 9, 'kie',
        'default', '["kie"]', '[]', 1, '[]', '[]', '{{{{}}}}', '{{{{}}}}', 'nano-banana', 'text-to-image',
        'a red bicycle in front of a yellow house, late afternoon, long shadows, number ' || n, '1:1',
        '{{{{"output_format": "png"}}}}', '[]', 1, 0, md5('job' || n), 1,
        '["https://tempfile.example.com/' || name || '.png"]', at + 900, at, 0, 'yes', 4, at - 30, at, at, at,
        at - 29, at - 1
        FROM (SELECT n, 'task_' || md5(n::text) AS name, {{now}} - 2.1 * {{day}} + n * {{day}} / {{rows}} AS at
            FROM generate_series(0, {{rows}} - 1) AS n) AS numbered""",
    _ATTEMPTS_OF,
    """INSERT INTO images SELECT 'generated_' || md5('image' || id) || '.png', id, caller, 'result', 0,
        id || '/' || md5(id), 'image/png', 2000000, 1024, 1024, md5(id) || md5(id), ended_at FROM tasks""",
)
REMEMBERED: Final = (
    f"""INSERT INTO tasks {_TASK}
        SELECT 'task_' || md5(id), 'task_' || md5(id), caller, 'expired', {{now}} + 30 * {{day}}, 0, '', 13, provider,
        key_id, candidates, routes, priority, texts, turns, origin, tokens, model, mode, '', aspect_ratio,
        '{{{{}}}}', '[]', 1, 1, md5(job_id), 1, '[]', deadline_at, checked_at,
        0, 'yes', 4, created_at, updated_at, ended_at, entered_at, sent_at, finished_at FROM tasks""",
    f"{_ATTEMPTS_OF} WHERE state = 'expired'",
)
"""As many again that are known to have been, so that Postgres' statistics are those of a table in use."""
ONE_DELETE: Final = """BEGIN;
    DELETE FROM images WHERE owner IN (SELECT id FROM tasks WHERE state = 'succeeded' AND due_at <= {now});
    DELETE FROM attempts WHERE task_id IN (SELECT id FROM tasks WHERE state = 'succeeded' AND due_at <= {now});
    DELETE FROM tasks WHERE state = 'succeeded' AND due_at <= {now}; COMMIT"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one way of deletion. seconds: until it was done. wal, sizes: bytes."""

    name: str
    rows: int
    seconds: float
    polls: tuple[list[float], list[float]]
    creates: tuple[list[float], list[float]]
    wal: int
    dead: int
    sizes: tuple[int, int, int]

    def row(self) -> list[str]:
        polls, creates = self.polls, self.creates
        return [
            self.name,
            f"{self.seconds:.1f}",
            f"{self.rows / self.seconds:,.0f}".replace(",", " "),
            f"{ms(cut(polls[0], 50))} → {ms(cut(polls[1], 50))}",
            f"{ms(cut(polls[0], 99))} → {ms(cut(polls[1], 99))}",
            f"{ms(cut(creates[0], 99))} → {ms(cut(creates[1], 99))}",
            ms(max(creates[1], default=float("nan"))),
            mb(self.wal),
            str(self.dead),
            " → ".join(mb(size) for size in self.sizes),
        ]


HEAD: Final = (
    "way",
    "seconds",
    "rows/s",
    "poll p50 ms, before → during",
    "poll p99 ms",
    "create p99 ms",
    "longest create ms",
    "WAL MB",
    "dead rows left",
    "tables MB: before → after → vacuumed",
)


@dataclass(kw_only=True)
class Bench:
    """rows: of a day. calm: seconds of polls and creates before anything is deleted, for comparison.

    remembered: whether there are expired tasks, too, whose time has not come.
    """

    server: Postgres
    rows: int
    calm: float
    remembered: bool
    costs: list[Cost] = field(default_factory=list)

    # -- databases

    async def seeded(self) -> str:
        """The name of a database with a day of ended tasks, to be copied."""
        url = await self.server.fresh()
        async with PostgresDatabase(url, connections=2) as database:
            await upgrade_schema(database, time.time() - 10 * DAY)
        connection = await asyncpg.connect(url)
        try:
            for sql in (*SEED, *(REMEMBERED if self.remembered else ())):
                await connection.execute(sql.format(rows=self.rows, now=time.time(), day=DAY), timeout=3600)
            await connection.execute("VACUUM ANALYZE", timeout=3600)
        finally:
            await connection.close()
        return url.rpartition("/")[2]

    @asynccontextmanager
    async def copy(self, template: str) -> AsyncIterator[str]:
        name = f"{template}_copy"
        await self.server.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        await self.server.execute("CHECKPOINT")
        try:
            yield self.server.url(name)
        finally:
            await self.server.execute(f"DROP DATABASE {name} WITH (FORCE)")

    # -- measuring

    async def measure(self, name: str, url: str, work: Callable[[], Awaitable[None]]) -> Cost:
        """Some calm seconds, then `work`, with pollers and creators all the while."""
        watch = await asyncpg.connect(url)
        company = Child(keep_company, url, self.rows)
        await company.ready()
        company.go()
        await asyncio.sleep(1.0)  # connections are made, statements prepared
        calm_at = time.monotonic()
        await asyncio.sleep(self.calm)
        before = await _sizes(watch)
        lsn, begun = await watch.fetchval("SELECT pg_current_wal_lsn()"), time.monotonic()
        await work()
        ended = time.monotonic()
        wal = await watch.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1)::bigint", lsn)
        seen: Seen = await company.result()
        await asyncio.sleep(1.2)  # sessions report their statistics at most once a second
        dead = await watch.fetchval(
            """SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables
                WHERE relname ~ '^(tasks|attempts|images)(_day[0-9]+)?$'"""
        )
        after = await _sizes(watch)
        await watch.execute(f"VACUUM {', '.join(TABLES)}", timeout=3600)
        sizes = (before, after, await _sizes(watch))
        await watch.close()
        return Cost(
            name=name,
            rows=self.rows,
            seconds=ended - begun,
            polls=_parted(seen.polls, calm_at, begun, ended),
            creates=_parted(seen.creates, calm_at, begun, ended),
            wal=wal,
            dead=dead,
            sizes=sizes,
        )

    # -- the ways

    async def batched(self, template: str, processes: int) -> None:
        async with self.copy(template) as url:
            many = f"batched, {processes} process{'es' if processes > 1 else ''}"
            async with self.workers(url, processes, 0.0) as work:
                self.costs.append(await self.measure(f"{many}: prompts and images", url, work))
            async with self.workers(url, processes, LATER) as work:
                self.costs.append(await self.measure(f"{many}: the rows, a week later", url, work))

    @asynccontextmanager
    async def workers(self, url: str, count: int, ahead: float) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Workers that are ready; what is yielded sets them to work and waits until nothing is left to delete."""
        children = [Child(retire, url, ahead) for _ in range(count)]

        async def work() -> None:
            for child in children:
                child.go()
            await _nothing_due(url, time.time() + ahead)

        await asyncio.gather(*(child.ready() for child in children))
        try:
            yield work
        finally:
            await asyncio.gather(*(child.result() for child in children))

    async def one_delete(self, template: str) -> None:
        async def work() -> None:
            await _execute(url, ONE_DELETE.format(now=time.time()))

        async with self.copy(template) as url:
            self.costs.append(await self.measure("one DELETE", url, work))

    async def dropped(self, template: str) -> list[list[str]]:
        """The prototype: how long the ways of dropping take, and how long others wait for each."""
        rows = []
        for name, statements in DROPS.items():
            for reader in (False, True):
                async with self.copy(template) as url:
                    rows.append(await self._drop(name, statements, url, reader=reader))
        return rows

    async def _drop(self, name: str, statements: tuple[str, ...], url: str, *, reader: bool) -> list[str]:
        async def work() -> None:
            reading = asyncio.ensure_future(_read_slowly(url)) if reader else None
            await asyncio.sleep(0.2)
            for one in TABLES:
                for sql in statements:
                    await _execute(url, sql.format(table=one))
            if reading:
                await reading

        title = f"{name}{', during a read of two seconds' if reader else ''}"
        cost = await self.measure(title, url, work)
        return [
            title,
            f"{cost.seconds - 0.2:.2f}",
            f"{ms(cut(cost.polls[0], 99))} → {ms(cut(cost.polls[1], 99))}",
            ms(max(cost.polls[1], default=0.0)),
            ms(max(cost.creates[1], default=0.0)),
            mb(cost.wal),
        ]


DROPS: Final[Mapping[str, tuple[str, ...]]] = {
    "DROP TABLE": ("DROP TABLE {table}_day0",),
    "DETACH, then DROP": ("ALTER TABLE {table} DETACH PARTITION {table}_day0", "DROP TABLE {table}_day0"),
    "DETACH CONCURRENTLY, then DROP": (
        "ALTER TABLE {table} DETACH PARTITION {table}_day0 CONCURRENTLY",
        "DROP TABLE {table}_day0",
    ),
}
DROP_HEAD: Final = ("way", "seconds", "poll p99 ms, before → during", "longest poll ms", "longest create ms", "WAL MB")


def _parted(
    seen: list[tuple[float, float]], calm_at: float, begun: float, ended: float
) -> tuple[list[float], list[float]]:
    before = [took for at, took in seen if calm_at <= at < begun]
    return before, [took for at, took in seen if begun <= at <= ended]


async def _sizes(connection: Any) -> int:
    """Of the tables with all of their indexes and partitions."""
    size: int = await connection.fetchval(
        """SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
            WHERE relkind = 'r' AND relname ~ '^(tasks|attempts|images)(_day[0-9]+)?$'"""
    )
    return size


async def _execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql, timeout=3600)
    finally:
        await connection.close()


async def _read_slowly(url: str) -> None:
    await _execute(
        url,
        f"BEGIN; SELECT count(*) FROM (SELECT 1 FROM tasks LIMIT 1) AS t; SELECT pg_sleep({READER_SECONDS}); COMMIT",
    )


async def _nothing_due(url: str, now: float) -> None:
    connection = await asyncpg.connect(url)
    states = ("succeeded", "expired")
    try:
        for state in states:  # none is ever due in the second that was not in the first
            due = f"SELECT 1 FROM tasks WHERE state = '{state}' AND due_at <= {now} LIMIT 1"
            while True:
                if not await connection.fetchval(due):
                    break
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


# -- the worker, as it is


class _Ahead(SystemClock):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> float:
        return time.time() + self._seconds


async def retire(side: Side, url: str, ahead: float) -> float:
    """`broker worker` on this database, with its clock that far ahead. Returns its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            env_file=None,
            database_url=url,
            data_dir=Path(folder),
            kie_keys="bench-key",
            api_url="http://127.0.0.1:9",
            tunnel_api="http://127.0.0.1:9",
            secret_key="the same for all of them",
        )
        # it joins no cluster, which would reject its clock
        async with open_services(settings, clock=_Ahead(ahead), joins=False) as services:
            await side.wait_for_go()
            begun = time.process_time()
            running = asyncio.create_task(services.worker.run())
            await side.wait_for_stop()
            services.worker.stop()
            await running
            return time.process_time() - begun


# -- the prototype: a partition per day


def _parts(count: int, name: str, new: str, at: str, key: str, since: float) -> list[str]:
    """Statements that make a table like `name`, with `count` partitions of a day each and a last one for the rest."""
    bounds = ["MINVALUE", *(f"{since + day * DAY}" for day in range(1, count)), "MAXVALUE"]
    return [
        f"CREATE TABLE {new} (LIKE {name}) PARTITION BY RANGE ({at})",
        *(
            f"CREATE TABLE {new}_day{n} PARTITION OF {new} FOR VALUES FROM ({bounds[n]}) TO ({bounds[n + 1]})"
            for n in range(count)
        ),
        f"ALTER TABLE {new} ADD PRIMARY KEY ({key}, {at})",
    ]


TASK_INDEXES: Final = (
    "(state, due_at)",
    "(provider, due_at, id) WHERE state = 'queued'",
    "(deadline_at) WHERE state = 'queued'",
    "(provider, key_id) WHERE state IN ('submitting', 'waiting')",
    "(provider, caller, priority DESC, due_at, id) WHERE state = 'queued'",
    "(provider, caller, sent_at) WHERE sent_at IS NOT NULL",
    "(created_at, id)",
    "(batch)",
)


async def partition(url: str, days: int = 9) -> None:
    """All of the seeded tasks into the first of some daily partitions; later ones are for what is created now."""
    since = time.time() - days * DAY
    kinds = {
        "tasks": ("created_at", "id"),
        "attempts": ("sent_at", "task_id, number"),
        "images": ("created_at", "name"),
    }
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("DELETE FROM attempts WHERE task_id IN (SELECT id FROM tasks WHERE state = 'expired')")
        await connection.execute("DELETE FROM tasks WHERE state = 'expired'")
        for name, (at, key) in kinds.items():
            await connection.execute(f"ALTER TABLE {name} RENAME TO old_{name}")
            first = f"UPDATE old_{name} SET {at} = {at} - {(days + 1) * DAY}"
            for sql in (first, *_parts(days, f"old_{name}", name, at, key, since)):
                await connection.execute(sql, timeout=3600)
            for index in TASK_INDEXES if name == "tasks" else ():
                await connection.execute(f"CREATE INDEX ON tasks {index}")
        await connection.execute("CREATE INDEX ON attempts (job_id) WHERE job_id IS NOT NULL")
        await connection.execute("CREATE INDEX ON attempts (provider, key_id, sent_at)")
        await connection.execute("CREATE UNIQUE INDEX ON images (owner, kind, position, created_at)")
        for name in kinds:
            await connection.execute(
                f"INSERT INTO {name} SELECT * FROM old_{name}; DROP TABLE old_{name}", timeout=3600
            )
        await connection.execute("VACUUM ANALYZE", timeout=3600)
    finally:
        await connection.close()


async def look_ups(url: str, rows: int, rounds: int) -> list[list[str]]:
    """Return the cost of a read by id alone, and of a claim, with the same rows spread over partitions."""
    connection = await asyncpg.connect(url)
    first, last = await connection.fetchrow("SELECT min(created_at), max(created_at) + 1 FROM tasks") or (0.0, 0.0)
    names = {"tasks": 0, **{f"spread_{count}": count for count in PARTITIONS}}
    for name, count in list(names.items())[1:]:
        bounds = [first + (last - first) * n / count for n in range(1, count)]
        edges = ["MINVALUE", *map(str, bounds), "MAXVALUE"]
        await connection.execute(f"CREATE TABLE {name} (LIKE tasks) PARTITION BY RANGE (created_at)")
        for n in range(count):
            part = f"{name}_{n} PARTITION OF {name} FOR VALUES FROM ({edges[n]}) TO ({edges[n + 1]})"
            await connection.execute(f"CREATE TABLE {part}")
        await connection.execute(f"ALTER TABLE {name} ADD PRIMARY KEY (id, created_at)")
        await connection.execute(f"CREATE INDEX ON {name} (state, due_at)")
        await connection.execute(f"INSERT INTO {name} SELECT * FROM tasks", timeout=3600)
    await connection.execute("VACUUM ANALYZE", timeout=3600)

    async def reads(name: str) -> float:
        return await _median_seconds(
            lambda: connection.fetchrow(f"SELECT * FROM {name} WHERE id = $1", task_id(random.randrange(rows)))
        )

    async def claims(name: str) -> float:
        key = "(id, created_at)" if names[name] else "(id)"  # the whole key leads to one partition
        sql = f"""WITH due AS MATERIALIZED (SELECT id, created_at FROM {name}
            WHERE state = $1 AND due_at <= $2 AND lease_until <= $2 ORDER BY due_at LIMIT 10 FOR UPDATE SKIP LOCKED)
            UPDATE {name} SET leased_by = 'me', version = version + 1
            WHERE {key} IN (SELECT {key[1:-1]} FROM due) RETURNING *"""
        return await _median_seconds(lambda: connection.fetch(sql, "succeeded", time.time()))

    read = await interleaved({name: lambda name=name: reads(name) for name in names}, rounds)  # type: ignore[misc]
    claim = await interleaved({name: lambda name=name: claims(name) for name in names}, rounds)  # type: ignore[misc]
    await connection.close()
    return [
        [
            f"{count} partitions" if count else "one table, as it is",
            f"{read[name] * 1e6:.0f}",
            f"{read[name] / read['tasks']:.2f}",
            f"{claim[name] * 1e6:.0f}",
            f"{claim[name] / claim['tasks']:.2f}",
        ]
        for name, count in names.items()
    ]


async def _median_seconds(ask: Callable[[], Awaitable[object]]) -> float:
    took = []
    for _ in range(LOOK_UPS):
        begun = time.perf_counter()
        await ask()
        took.append(time.perf_counter() - begun)
    return cut(took, 50)


LOOK_UP_HEAD: Final = ("the same rows in", "read by id µs", "× one table", "claim of 10 µs", "× one table")


async def main(rows: int, calm: float, *, remembered: bool = True) -> None:
    with running() as server:
        bench = Bench(server=server, rows=rows, calm=calm, remembered=remembered)
        template = await bench.seeded()
        for processes in (1, 2):
            await bench.batched(template, processes)
        await bench.one_delete(template)
        say(f"### Deletion of {rows:,} ended tasks during {POLLS} polls and {CREATES} creates a second\n")
        say(table(HEAD, [cost.row() for cost in bench.costs]))
        async with bench.copy(template) as url:
            say("\n### Partitions: cost for all other queries\n")
            say(table(LOOK_UP_HEAD, await look_ups(url, rows, 5)))
        await partition(server.url(template))
        say(f"\n### Dropping a day's partition of three tables, {rows:,} rows each, and who waits for it\n")
        say(table(DROP_HEAD, await bench.dropped(template)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engines.retention")
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000, help="ended tasks of a day")
    parser.add_argument("--calm", type=float, default=10.0, help="seconds of polls and creates before, for comparison")
    parser.add_argument("--first-day", action="store_true", help="no task has expired before")
    chosen = parser.parse_args()
    asyncio.run(main(chosen.rows, chosen.calm, remembered=not chosen.first_day))
