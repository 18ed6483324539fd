"""P11: what the broker adds to asyncpg, for reads and claims; and two processes beside one."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.benchmarks.engines.measuring import per_second
from tests.benchmarks.engines.postgres_paths import POOL, Work, claiming, lives_on_postgres, reading, stored
from tests.benchmarks.results import Measured, Row, ratio_at_least
from tests.benchmarks.support.bench import Bench
from tests.support.servers.postgres import running

PATH: Final = "P11"
STORED: Final = 20_000
CLAIMERS: Final = 8
BATCH: Final = 10


async def measure(bench: Bench) -> list[Row]:
    lives = bench.options.size(200, 3000)
    with running(durable=True) as server:
        url = await server.fresh()
        ids = await stored(url, STORED)
        async with reading(url, ids) as ways:
            reads = await _rates(bench, ways, POOL)
        async with claiming(url, BATCH) as ways:
            claims = await _rates(bench, ways, CLAIMERS)
        processes = await bench.interleave(
            {name: partial(lives_on_postgres, server, lives, count, []) for name, count in (("one", 1), ("two", 2))},
            rounds=bench.options.few_rounds,
        )
    return [
        Row(
            path=PATH,
            what=f"Postgres: read of a task, {POOL} at once",
            reference=_side(reads["alone"], "asyncpg connections"),
            ours=_side(reads["ours"]),
            goal=ratio_at_least(0.7),
        ),
        Row(
            path=PATH,
            what=f"Postgres: read of a task, {POOL} at once",
            reference=_side(reads["pooled"], "asyncpg pool"),
            ours=_side(reads["ours"]),
        ),
        Row(
            path=PATH,
            what=f"Postgres: claim of {BATCH}, {CLAIMERS} at once",
            reference=_side(claims["bare"], "asyncpg pool"),
            ours=_side(claims["ours"]),
            goal=ratio_at_least(0.7),
            on_disk=True,
        ),
        Row(
            path=PATH,
            what="Postgres: two processes, lives without a network",
            reference=_side(processes["one"], "one process"),
            ours=_side(processes["two"]),
            goal=ratio_at_least(1.7),
            on_disk=True,
        ),
    ]


async def _rates(bench: Bench, ways: Work, workers: int) -> dict[str, list[float]]:
    """Measure all ways, the bare ones first."""
    names = sorted(ways, key=lambda name: name == "ours")
    return await bench.interleave(
        {name: partial(per_second, ways[name], workers, bench.options.seconds / 2) for name in names}, warm_up=True
    )


def _side(values: list[float], name: str = "") -> Measured:
    return Measured(name=name, unit="/s", values=tuple(values))
