"""Comparison of `scripts/simulate.py` with the real system: `python -m tests.benchmarks.engines.simulation`.

The same orders at the same times run through the real engine on Postgres (one process, and a provider double with a
window and a concurrency limit), and through the simulation.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import asyncpg

from scripts.simulate import Deployment, Simulation, percentile
from storage.sql.migrate import upgrade_schema
from storage.sql.postgres import PostgresDatabase
from tests.benchmarks.engines.lives import Upstream, live
from tests.benchmarks.engines.measuring import Child, say, table
from tests.support.servers.postgres import running

DEPLOYMENTS = {
    "the window is the limit": Deployment(orders=18_000, creates=40, concurrency=100, provider_seconds=2.0),
    "the concurrency is the limit": Deployment(orders=18_000, creates=1000, concurrency=8, provider_seconds=2.0),
    "no limit is reached": Deployment(orders=18_000, creates=100, concurrency=100, provider_seconds=2.0),
}


async def real(deployment: Deployment, arrivals: list[float]) -> tuple[list[float], list[float]]:
    """Return the seconds in the queue and from order to end, of every order."""
    upstream = Upstream(
        creates_per_10s=deployment.creates,
        places=deployment.concurrency,
        seconds=deployment.provider_seconds,
        jitter=True,
    )
    with running() as server:
        url = await server.fresh()
        async with PostgresDatabase(url, connections=2) as database:
            await upgrade_schema(database, time.time())
        child = Child(live, url, upstream, arrivals)
        await child.ready()
        child.go()
        await child.result()
        connection = await asyncpg.connect(url)
        rows = await connection.fetch(
            """SELECT a.sent_at - t.created_at AS queued, t.ended_at - t.created_at AS life
                FROM tasks t JOIN attempts a ON a.task_id = t.id"""
        )
        await connection.close()
    return [row["queued"] for row in rows], [row["life"] for row in rows]


async def main(seconds: float) -> None:
    rows = []
    for name, deployment in DEPLOYMENTS.items():
        timed = Deployment(
            **{**vars(deployment), "hours": seconds / 3600, "download_seconds": 0.0, "megabytes": 0.0, "lost": 0.0}
        )
        simulated = Simulation(timed).run()
        queued, lives = await real(timed, [order.arrives_at for order in simulated.orders])
        for what, ours, theirs in (
            ("in the queue", queued, simulated.waits),
            ("order to end", lives, simulated.durations),
        ):
            for percent in (50, 99):
                was, said = percentile(ours, percent), percentile(theirs, percent)
                rows.append([name, f"{what}, p{percent}", f"{was:.2f}", f"{said:.2f}", f"{said - was:+.2f}"])
    say(f"\n### The simulation beside the real engine, {seconds:.0f} s of 5 orders a second\n")
    say(table(("case", "seconds", "real", "simulated", "difference"), rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engines.simulation")
    parser.add_argument("seconds", type=float, nargs="?", default=40.0, help="for which orders come")
    asyncio.run(main(parser.parse_args().seconds))
