"""Cost of notifying other processes for the committing one: `python -m tests.benchmarks.engines.notify`.

Writers commit two statements each time, as a step of a task does, through `PostgresDatabase`; a second process's
database listens. They notify never, or after the commit and batched (as the broker does), or with a NOTIFY as the
last statement of the transaction. Once on the disk as it is, once on one that needs two milliseconds more per flush, as
a network volume does (Postgres' own `commit_delay`). The same with pgbench, whose clients cost next to nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import asyncpg

from storage.attempts import Attempts
from storage.sql.database import Statement
from storage.sql.migrate import upgrade_schema
from storage.sql.pg_notify import CHANNEL
from storage.sql.postgres import PostgresDatabase
from storage.tasks import DUE_CHANNEL, Tasks, task_channel
from tests.benchmarks.engines.company import new_task
from tests.benchmarks.engines.measuring import Child, Side, cut, interleaved, ms, per_second, say, table
from tests.support.servers.postgres import Postgres, running

WRITERS: Final = (1, 8, 32)
ROUNDS: Final = 3
SLOW_FLUSH: Final = 2000
"""Microseconds."""
WAYS: Final = ("no notification", "after the commit", "inside the transaction")
HEAD: Final = ("writers", *(f"{way}, commits/s" for way in WAYS), *(f"{way}, ratio" for way in WAYS[1:]))


async def seeded(url: str, count: int) -> list[str]:
    async with PostgresDatabase(url, connections=2) as database:
        await upgrade_schema(database, time.time())
        tasks = Tasks(database)
        seeds = [new_task() for _ in range(count)]
        await database.transact(*(tasks.insert_task(seed) for seed in seeds))
        for seed in seeds:
            await database.execute(
                """INSERT INTO attempts (task_id, number, provider, key_id, sent_at, outcome, billed)
                    VALUES (:task_id, 1, 'none', 'default', :sent_at, 'sent', 'unknown')""",
                task_id=seed.id,
                sent_at=time.time(),
            )
        return [seed.id for seed in seeds]


def step(tasks: Tasks, task_id: str) -> list[Statement]:
    """Apply a transition: the row, and its line in the ledger."""
    row = Statement(
        sql="UPDATE tasks SET lease_until = :now, version = version + 1 WHERE id = :id",
        params={"id": task_id, "now": time.time()},
        must_change=True,
    )
    return [row, Attempts(tasks.database).update_attempt(task_id, 1, outcome="accepted")]


def writing(database: PostgresDatabase, way: str, ids: list[str]) -> Callable[[], Awaitable[int]]:
    """One commit of the next row; the writers never meet at the same one."""
    turns, tasks = itertools.cycle(ids), Tasks(database)

    async def write() -> int:
        task_id = next(turns)
        channels = (DUE_CHANNEL, task_channel(task_id))
        statements = step(tasks, task_id)
        if way == WAYS[2]:
            payload = {"channel": CHANNEL, "payload": " ".join(channels)}
            statements.append(Statement(sql="SELECT pg_notify(:channel, :payload)", params=payload))
        await database.transact(*statements, wake=channels if way == WAYS[1] else ())
        return 1

    return write


async def commits(url: str, ids: list[str], seconds: float) -> list[list[str]]:
    rows = []
    async with PostgresDatabase(url, connections=32) as writer, PostgresDatabase(url, connections=2):
        for writers in WRITERS:

            async def one(way: str, writers: int = writers) -> float:
                return await per_second(writing(writer, way, ids), writers, seconds)

            results = await interleaved({way: lambda way=way: one(way) for way in WAYS}, ROUNDS)  # type: ignore[misc]
            rows.append(_told(writers, results))
    return rows


def _told(writers: int, results: dict[str, float]) -> list[str]:
    base = results[WAYS[0]]
    rates = [f"{results[way]:.0f}" for way in WAYS]
    return [str(writers), *rates, *(f"{results[way] / base:.2f}" for way in WAYS[1:])]


# -- the server alone


async def server_alone(server: Postgres, url: str, seconds: float) -> list[list[str]]:
    """pgbench: one UPDATE in a transaction, with and without NOTIFY; listened to by one."""
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE IF NOT EXISTS bench (id int PRIMARY KEY, n int)")
    await connection.execute("INSERT INTO bench SELECT n, 0 FROM generate_series(0, 63) AS n ON CONFLICT DO NOTHING")
    await connection.add_listener(CHANNEL, lambda *_: None)
    rows = []
    for writers in WRITERS:

        async def one(way: str, writers: int = writers) -> float:
            notify = f"SELECT pg_notify('{CHANNEL}', 'due task:' || :client_id);" if way == WAYS[2] else ""
            return await _pgbench(
                server,
                url,
                f"BEGIN;\nUPDATE bench SET n = n + 1 WHERE id = :client_id;\n{notify}\nCOMMIT;",
                writers,
                seconds,
            )

        ways = (WAYS[0], WAYS[2])
        results = await interleaved({way: lambda way=way: one(way) for way in ways}, ROUNDS)  # type: ignore[misc]
        rates = [f"{results[way]:.0f}" for way in ways]
        rows.append([str(writers), *rates, f"{results[ways[1]] / results[ways[0]]:.2f}"])
    await connection.close()
    return rows


async def _pgbench(server: Postgres, url: str, script: str, clients: int, seconds: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script.sql"
        file.write_text(script, "utf-8")
        command = ["-n", "-T", f"{max(1, round(seconds))}", "-c", str(clients), "-M", "prepared", "-f", str(file), url]
        process = await asyncio.create_subprocess_exec(
            server.programs / "pgbench", *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, trouble = await process.communicate()
    found = re.search(r"tps = ([0-9.]+)", out.decode())
    if found is None:
        raise RuntimeError(trouble.decode())
    return float(found[1])


# -- time until the notification arrives


async def keep_writing(side: Side, url: str, ids: list[str], writers: int) -> None:
    """A busy process: so many writers, which notify after the commit."""
    async with PostgresDatabase(url, connections=writers) as database:
        write = writing(database, WAYS[1], ids)
        await side.wait_for_go()
        going = [asyncio.create_task(_forever(write)) for _ in range(writers)]
        await side.wait_for_stop()
        for one in going:
            one.cancel()
        await asyncio.gather(*going, return_exceptions=True)


async def _forever(write: Callable[[], Awaitable[int]]) -> None:
    while True:
        await write()


async def latency(url: str, ids: list[str], times: int, busy: int) -> list[str]:
    """From the return of a commit in one database to the notification in another one."""
    child = Child(keep_writing, url, ids[1:], busy) if busy else None
    if child:
        await child.ready()
        child.go()
    took = []
    async with PostgresDatabase(url, connections=2) as ours, PostgresDatabase(url, connections=2) as theirs:
        await theirs.check()  # both are connected
        await ours.check()
        channel = task_channel("of_the_benchmark")
        with theirs.listen(channel) as subscription:
            for _ in range(times):
                await ours.transact(*step(Tasks(ours), ids[0]), wake=(channel,))
                committed = time.perf_counter()
                if await subscription.wait(2.0):
                    took.append(time.perf_counter() - committed)
                await asyncio.sleep(0.002)
    if child:
        await child.result()
    who = f"{busy} writers in another process" if busy else "no other writer"
    return [who, ms(cut(took, 50)), ms(cut(took, 99)), str(times - len(took))]


async def main(seconds: float) -> None:
    with running() as server:
        url = await server.fresh()
        ids = await seeded(url, 64)
        for disk, delay in (("the disk as it is", 0), (f"a flush takes {SLOW_FLUSH / 1000:.0f} ms more", SLOW_FLUSH)):
            await server.execute(f"ALTER SYSTEM SET commit_delay = {delay}")
            await server.execute("ALTER SYSTEM SET commit_siblings = 0")
            await server.execute("SELECT pg_reload_conf()")
            await asyncio.sleep(0.3)
            say(f"\n### Commits beside NOTIFY, {disk}\n")
            say(table(HEAD, await commits(url, ids, seconds)))
            say(f"\n### The server alone (pgbench), {disk}\n")
            say(table(("clients", WAYS[0], WAYS[2], "ratio"), await server_alone(server, url, seconds)))
        await server.execute("ALTER SYSTEM RESET ALL")
        await server.execute("SELECT pg_reload_conf()")
        say("\n### From the commit in one process to its notification in another\n")
        rows = [await latency(url, ids, 300, busy) for busy in (0, 8)]
        say(table(("beside", "p50 ms", "p99 ms", "not received in 2 s"), rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engines.notify")
    parser.add_argument("seconds", type=float, nargs="?", default=3.0, help="per round")
    asyncio.run(main(parser.parse_args().seconds))
