"""P6: fifty results of 20 MB at once: downloaded, hashed, checked and stored, beside raw sockets in threads."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final

from anyio import to_thread

from tests.benchmarks.results import Measured, Row, ratio_at_least, value_at_most
from tests.benchmarks.support.bench import Bench, Broker, Provider
from tests.benchmarks.support.client import milliseconds, probing, wait_until
from tests.benchmarks.support.images import noise_image
from tests.benchmarks.support.lives import ended_in_sqlite, until_ended
from tests.benchmarks.support.processes import run_python

PATH: Final = "P6"
AT_ONCE: Final = 50
MEGABYTES: Final = 20
MAX_SECONDS: Final = 120.0
PROBE_SECONDS: Final = 0.005


async def measure(bench: Bench) -> list[Row]:
    image = await to_thread.run_sync(noise_image, bench.cache, MEGABYTES)
    rates: list[float] = []
    memory: list[float] = []
    stalls: list[float] = []
    limit: list[float] = []
    async with bench.provider(delay=0.0) as provider, bench.broker(provider) as broker:
        warm = await broker.create()
        await broker.wait_for(warm, "completed")
        await provider.control("image", file=str(image))
        await provider.control("delay", seconds=None)
        for _ in range(min(bench.options.rounds, bench.options.size(2, 5))):
            await bench.calibrate()
            limit.append(await _raw(bench, provider))
            idle = broker.subject.rss_mib()
            broker.subject.reset_peak()
            async with probing(broker.subject.port, f"/api/task/{warm}", PROBE_SECONDS) as latencies:
                seconds = await _download(broker, provider)
            rates.append(AT_ONCE * image.stat().st_size / seconds / 1e6)
            memory.append(broker.subject.peak_rss_mib() - idle)
            stalls.append(max(latencies))
        await bench.calibrate()
    what = f"{AT_ONCE} × {MEGABYTES} MB"
    return [
        Row(
            path=PATH,
            what=f"fetch {what} with hash, to durable files",
            reference=Measured(name="D", unit="MB/s", values=tuple(limit)),
            ours=Measured(unit="MB/s", values=tuple(rates)),
            goal=ratio_at_least(0.45),
            note="D neither hashes nor checks nor syncs",
            on_disk=True,
        ),
        Row(
            path=PATH,
            what=f"{what}: peak memory beyond idle",
            ours=Measured(unit="MiB", values=tuple(memory)),
            goal=value_at_most(64),
            is_timed=False,
        ),
        Row(
            path=PATH,
            what=f"{what}: longest poll beside it",
            ours=milliseconds(*stalls),
            goal=value_at_most(50),
            note=f"a poll every {PROBE_SECONDS * 1000:.0f} ms, each as long as the loop stalled at most",
        ),
    ]


async def _raw(bench: Bench, provider: Provider) -> float:
    folder = bench.folder("raw")
    out = await run_python("tests.benchmarks.support.raw_download", provider.subject.port, AT_ONCE, folder)
    await to_thread.run_sync(shutil.rmtree, folder)
    return float(out)


async def _download(broker: Broker, provider: Provider) -> float:
    """Return the seconds from the first callback to the end of the last task."""
    await provider.control("forget")
    tasks = [await broker.create() for _ in range(AT_ONCE)]

    async def ordered() -> bool:
        return bool((await provider.control("stats"))["jobs"] >= AT_ONCE)

    await wait_until(ordered, every_seconds=0.02, seconds=MAX_SECONDS)
    for task_id in tasks:
        await broker.wait_for(task_id, "processing")
    began = time.time()
    await provider.control("release")
    last = await until_ended(lambda: ended_in_sqlite(broker.database))
    await to_thread.run_sync(_remove_blobs, broker.data / "blobs")
    return last - began


def _remove_blobs(folder: Path) -> None:
    """Free the disk for the next round."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.unlink()
