"""P8: start, memory and wake-ups of an idle broker, new and with many stored tasks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.results import Measured, Row, number, value_at_most
from tests.benchmarks.support.bench import Bench
from tests.benchmarks.support.processes import Subject
from tests.benchmarks.support.seed import seeded

PATH: Final = "P8"
SETTLE_SECONDS: Final = 0.7


@dataclass(frozen=True, kw_only=True)
class Idle:
    """seconds: from the start of the process to the first answer. wake_ups: per second, of all threads."""

    seconds: float
    mib: float
    wake_ups: float


async def measure(bench: Bench) -> list[Row]:
    stored = bench.options.size(100_000, 1_000_000)
    seed = await seeded(bench, stored)
    many, new = await seed.copy(bench.folder("idle") / "data"), bench.folder("idle") / "data"

    async def bare() -> Idle:
        async with bench.bare() as subject:
            return await _watch(bench, subject)

    async def ours(data: Path) -> Idle:
        async with bench.broker(None, data=data) as broker:
            return await _watch(bench, broker.subject)

    async with bench.broker(None, data=new):
        pass  # creates the database
    found = await bench.interleave(
        {"P": bare, "new": lambda: ours(new), "many": lambda: ours(many)}, rounds=bench.options.few_rounds
    )
    bare_start = _values(found["P"], "seconds", "s", "P")
    bare_memory = _values(found["P"], "mib", "MiB", "P")
    count = number(stored)

    def row(what: str, ours: Measured, bound: float, reference: Measured) -> Row:
        is_timed = ours.unit == "s"
        return Row(path=PATH, what=what, reference=reference, ours=ours, goal=value_at_most(bound), is_timed=is_timed)

    return [
        row("start to the first answer", _values(found["new"], "seconds", "s"), 0.5, bare_start),
        row("idle memory", _values(found["new"], "mib", "MiB"), 60, bare_memory),
        row("idle wake-ups", _values(found["new"], "wake_ups", "/s"), 1, _values(found["P"], "wake_ups", "/s", "P")),
        row(f"start with {count} stored tasks", _values(found["many"], "seconds", "s"), 1.0, bare_start),
        row(f"memory with {count} stored tasks", _values(found["many"], "mib", "MiB"), 90, bare_memory),
    ]


async def _watch(bench: Bench, subject: Subject) -> Idle:
    await asyncio.sleep(SETTLE_SECONDS)
    seconds = bench.options.size(2, 20)
    before = subject.wake_ups()
    await asyncio.sleep(seconds)
    wake_ups = (subject.wake_ups() - before) / seconds
    return Idle(seconds=subject.ready_seconds, mib=subject.rss_mib(), wake_ups=wake_ups)


def _values(found: list[Idle], field: str, unit: str, name: str = "") -> Measured:
    return Measured(name=name, unit=unit, values=tuple(getattr(one, field) for one in found))
