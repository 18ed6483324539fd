"""P14: the engine alone: durable lives with neither HTTP nor downloads, on SQLite and on Postgres."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.benchmarks.engines.postgres_paths import lives_on_postgres, lives_on_sqlite
from tests.benchmarks.results import Measured, Row, value_at_least
from tests.benchmarks.support.bench import Bench
from tests.benchmarks.support.disk import syncs_per_second
from tests.support.servers.postgres import running

PATH: Final = "P14"


async def measure(bench: Bench) -> list[Row]:
    lives, folder = bench.options.size(500, 5000), bench.folder("engine")
    with running(durable=True) as server:
        found = await bench.interleave(
            {
                "F": partial(syncs_per_second, folder, 0.5),
                "SQLite": partial(lives_on_sqlite, lives, folder),
                "Postgres": partial(lives_on_postgres, server, lives // 2, 1, []),
            },
            rounds=bench.options.few_rounds,
        )
    reference = Measured(name="F", unit="/s", values=tuple(found["F"]))
    return [
        Row(
            path=PATH,
            what=f"engine alone, durable lives, {name}",
            reference=reference,
            ours=Measured(unit="/s", values=tuple(found[name])),
            goal=value_at_least(bound),
            on_disk=True,
        )
        for name, bound in (("SQLite", 5000), ("Postgres", 1000))
    ]
