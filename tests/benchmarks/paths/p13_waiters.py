"""P13: many clients that wait for their tasks, by long polls and event streams."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.benchmarks.engines.waiters import measure as measure_waiters
from tests.benchmarks.results import Measured, Row, value_at_most
from tests.benchmarks.support.bench import Bench
from tests.benchmarks.support.client import milliseconds, percentile

PATH: Final = "P13"
WAYS: Final = ("long poll", "event stream")


async def measure(bench: Bench) -> list[Row]:
    clients = bench.options.size(400, 4000)
    found = await bench.interleave({way: partial(measure_waiters, way, clients) for way in WAYS}, rounds=1)
    rows = []
    for way, (waiting,) in found.items():
        what = f"{clients} clients, {way}"
        p50, p99 = (milliseconds(percentile(waiting.delays, percent)) for percent in (50, 99))
        size = Measured(unit="KiB", values=(waiting.kib_each,))
        rows += [
            Row(path=PATH, what=f"{what}: commit to response, p50", ours=p50, goal=value_at_most(5)),
            Row(path=PATH, what=f"{what}: commit to response, p99", ours=p99, goal=value_at_most(200)),
            Row(path=PATH, what=f"{what}: memory each", ours=size, goal=value_at_most(20), is_timed=False),
        ]
    return rows
