"""P7: whole lives over HTTP: create, submit, callback, download of a small image; fsynced."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from tests.benchmarks.paths.p03_create import PROMPTS, create_requests
from tests.benchmarks.results import Measured, Row, value_at_least
from tests.benchmarks.support.bench import Bench
from tests.benchmarks.support.lives import Ended, live, lives_per_second
from tests.benchmarks.support.load import write_requests
from tests.benchmarks.support.processes import run_python
from tests.benchmarks.support.stored_in_postgres import ended_in_postgres
from tests.support.servers.postgres import running

PATH: Final = "P7"
FIRST: Final = 100
"""Lives before the first round: code is loaded, connections are made, and the rate is known about."""
GOAL: Final = 1000
GOAL_OF_ALL: Final = 4000


async def measure(bench: Bench) -> list[Row]:
    ours, note = await _rounds(bench)
    goal = value_at_least(GOAL)
    what = "whole lives over HTTP, one process, SQLite"
    first = Row(path=PATH, what=what, ours=ours, goal=goal, note=note, on_disk=True)
    return [first, *await _on_postgres(bench)]


async def _on_postgres(bench: Bench) -> list[Row]:
    cores, goal = len(os.sched_getaffinity(0)), value_at_least(GOAL_OF_ALL)
    can_have_workers = "--workers" in await run_python("broker", "serve", "--help")
    with running(durable=True) as server:
        single, note = await _rounds(bench, await server.fresh())
        rows = [Row(path=PATH, what="whole lives, Postgres, one process", ours=single, note=note, on_disk=True)]
        what = f"whole lives, Postgres, --workers {cores}"
        if not can_have_workers or cores == 1:
            note = "the machine has one core" if can_have_workers else "`broker serve` has no --workers"
            return [*rows, Row(path=PATH, what=what, ours=None, goal=goal, note=note)]
        ours, note = await _rounds(bench, await server.fresh(), workers=cores)
    note = f"{note}; {cores} cores hold all processes, Postgres, the provider and the load"
    single = Measured(name="one process", unit=single.unit, values=single.values, cpu=single.cpu)
    return [*rows, Row(path=PATH, what=what, reference=single, ours=ours, goal=goal, note=note, on_disk=True)]


async def _rounds(bench: Bench, url: str = "", workers: int = 1) -> tuple[Measured, str]:
    """Return lives per second, and what a life needed of the provider. url: of a Postgres, else SQLite."""
    creates = write_requests(bench.folder("lives") / "creates", create_requests(PROMPTS))
    variables: Mapping[str, str] = {"DATABASE_URL": url} if url else {}
    flags = ("--workers", str(workers)) if workers > 1 else ()
    ended: Ended | None = (lambda: ended_in_postgres(url)) if url else None
    async with (
        bench.provider(delay=0.0) as provider,
        bench.broker(provider, flags=flags, variables=variables) as broker,
    ):
        first = await live(broker, creates, FIRST, ended)
        count = max(FIRST, int(first.rate * bench.options.seconds * 2))
        rounds = bench.options.few_rounds if url else bench.options.rounds
        results = await bench.interleave({"ours": lambda: live(broker, creates, count, ended)}, rounds=rounds)
        stats = await provider.control("stats")
    lives = FIRST + count * rounds
    note = (
        f"{count} at a time; {stats['jobs'] / lives:.2f} orders, {stats['downloads'] / lives:.2f} downloads, "
        f"{stats['connections'] / lives:.3f} connections to the provider per life"
    )
    return lives_per_second(results["ours"]), note
