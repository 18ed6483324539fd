"""Honest polls under hostile traffic in tiny pieces: eight connections of one kind, 1 MB/s each."""

from __future__ import annotations

from typing import Final

from tests.benchmarks.engines.hostile import (
    BYTES_PER_SECOND,
    CONNECTIONS,
    MAX_P99_SECONDS,
    REQUESTS,
    RESPONSES,
    measure,
)
from tests.benchmarks.results import Row, value_at_most
from tests.benchmarks.support.bench import Bench
from tests.benchmarks.support.client import milliseconds

PATH: Final = "hostile"
SHORT: Final = (
    "callback in chunks of a byte",
    "callback of 240 kB of objects",
    "103 responses of the provider",
)
"""Kinds of the short form: one of each nature: bytes, JSON, the provider's head."""


async def measure_all(bench: Bench) -> list[Row]:
    kinds = (*REQUESTS, *RESPONSES) if bench.options.is_long else SHORT
    seconds = bench.options.size(2, 8)
    await bench.calibrate()
    calm = milliseconds((await measure("none", bench.folder("hostile"), seconds=seconds)).p99, name="none, p99")
    rows = []
    for kind in kinds:
        outcome = await measure(kind, bench.folder("hostile"), seconds=seconds)
        await bench.calibrate()
        rows.append(
            Row(
                path=PATH,
                what=f"{kind}, p99 of polls",
                reference=calm,
                ours=milliseconds(outcome.p99),
                goal=value_at_most(MAX_P99_SECONDS * 1000),
                note=f"{CONNECTIONS} connections of {BYTES_PER_SECOND / 1e6:g} MB/s each sent "
                f"{outcome.hostile_bytes / 1e6:.0f} MB; {len(outcome.latencies)} polls",
            )
        )
    return rows
