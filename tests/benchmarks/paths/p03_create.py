"""P3: durable creates over 64 connections, beside the disk's own fdatasync; the same on a slow disk."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from anyio import to_thread

from tests.benchmarks.results import Measured, Row, ratio_at_least
from tests.benchmarks.support.bench import Bench
from tests.benchmarks.support.disk import has_slow_disk, slow_fsync, syncs_per_second
from tests.benchmarks.support.load import Load, full_load, http_request, rates, write_requests

PATH: Final = "P3"
PROMPTS: Final = 1000
LIKE_KIE: Final = {"NANO_BANANA_CREATES_PER_10S": "20"}
"""kie.ai's own limit: the created tasks queue, so that the creates are measured and not the engine."""


async def measure(bench: Bench) -> list[Row]:
    folder = bench.folder("creates")
    requests = write_requests(folder / "creates", create_requests(PROMPTS))
    rows = [await _measure(bench, folder, requests, slow=False)]
    if has_slow_disk():
        rows.append(await _measure(bench, folder, requests, slow=True))
    else:
        note = "no C compiler for the library that makes fsync slower"
        rows.append(Row(path=PATH, what="create, 5 ms per fsync", ours=None, goal=ratio_at_least(20), note=note))
    return rows


def create_requests(count: int) -> list[bytes]:
    return [
        http_request("POST", "/api/generate/image", {"prompt": f"a red bicycle, late afternoon, number {number}"})
        for number in range(count)
    ]


async def _measure(bench: Bench, folder: Path, requests: Path, *, slow: bool) -> Row:
    seconds = bench.options.seconds
    preload = await to_thread.run_sync(slow_fsync, bench.cache) if slow else None
    async with (
        bench.provider(delay=None) as provider,
        bench.broker(provider, slow_disk=slow, variables=LIKE_KIE) as broker,
    ):

        async def sync() -> float:
            return await syncs_per_second(folder, seconds, preload=preload)

        async def create() -> Load:
            return await full_load(broker.subject, requests, seconds)

        await create()
        syncs: list[float] = []
        loads: list[Load] = []
        for _ in range(bench.options.rounds):
            await bench.calibrate()
            syncs.append(await sync())
            loads.append(await create())
        await bench.calibrate()
    return Row(
        path=PATH,
        what="create, 5 ms per fsync" if slow else "create, durable, 64 connections",
        reference=Measured(name="F", unit="/s", values=tuple(syncs)),
        ours=rates(loads),
        goal=ratio_at_least(20 if slow else 1.0),
        note=f"p99 {max(load.p99 for load in loads) * 1000:.0f} ms",
        on_disk=True,
    )
