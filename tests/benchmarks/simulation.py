"""Comparison of `scripts/simulate.py` with the real engine: `python -m tests.benchmarks.simulation`.

The same orders at the same moments, once through the real engine on Postgres (a pretend provider with a window and
places, one process, no network), once through the simulation, side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import asyncpg

from scripts.simulate import Plant, Simulation, cut
from storage.sql.migrate import upgrade
from storage.sql.postgres import PostgresDatabase
from tests.benchmarks.lives import Upstream, live
from tests.benchmarks.measuring import Child, say, table
from tests.support.servers.postgres import running

PLANTS = {
    "the window is the limit": Plant(orders=18_000, creates=40, places=100, provider_seconds=2.0),
    "the places are the limit": Plant(orders=18_000, creates=1000, places=8, provider_seconds=2.0),
    "there is room": Plant(orders=18_000, creates=100, places=100, provider_seconds=2.0),
}


async def real(plant: Plant, arrivals: list[float]) -> tuple[list[float], list[float]]:
    """(seconds in the queue, seconds from order to end) of every order."""
    upstream = Upstream(creates_per_10s=plant.creates, places=plant.places, seconds=plant.provider_seconds, jitter=True)
    with running() as server:
        url = await server.fresh()
        async with PostgresDatabase(url, connections=2) as database:
            await upgrade(database, time.time())
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
    for name, plant in PLANTS.items():
        timed = Plant(
            **{**vars(plant), "hours": seconds / 3600, "download_seconds": 0.0, "megabytes": 0.0, "lost": 0.0}
        )
        simulated = Simulation(timed).run()
        queued, lives = await real(timed, [order.arrives_at for order in simulated.orders])
        for what, ours, theirs in (("in the queue", queued, simulated.waits), ("order to end", lives, simulated.lives)):
            for percent in (50, 99):
                was, said = cut(ours, percent), cut(theirs, percent)
                rows.append([name, f"{what}, p{percent}", f"{was:.2f}", f"{said:.2f}", f"{said - was:+.2f}"])
    say(f"\n### The simulation beside the real engine, {seconds:.0f} s of 5 orders a second\n")
    say(table(("case", "seconds", "real", "simulated", "difference"), rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.simulation")
    parser.add_argument("seconds", type=float, nargs="?", default=40.0, help="for which orders come")
    asyncio.run(main(parser.parse_args().seconds))
