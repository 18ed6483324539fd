"""P4: callbacks acknowledged after the fsync: at a steady rate beside polls, and at full load.

Each reports progress of a waiting task of its own, with a valid token and signature: it is verified, stored, and then
processed by the worker. What the success of a task costs more (the download) is measured by P7.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Final

from tests.benchmarks.results import Measured, Row, ratio_at_least, value_at_most
from tests.benchmarks.support.bench import SECRET, WEBHOOK_KEY, Bench
from tests.benchmarks.support.disk import syncs_per_second
from tests.benchmarks.support.load import Load, full_load, http_request, p99s, rates, steady_load, write_requests
from tests.benchmarks.support.processes import Subject
from tests.benchmarks.support.provider import signer
from tests.benchmarks.support.seed import PATIENT, Seeded, callback_path, seeded

PATH: Final = "P4"
CALLBACKS_PER_SECOND: Final = 1000
POLLS_PER_SECOND: Final = 3000


async def measure(bench: Bench) -> list[Row]:
    rounds, seconds = bench.options.rounds, bench.options.seconds
    waiting = int(rounds * seconds * bench.options.size(12_000, 20_000))
    seed, folder = await seeded(bench, waiting, "waiting"), bench.folder("callbacks")
    data = await seed.copy(folder / "data")
    async with bench.provider(delay=None) as provider, bench.broker(provider, data=data, variables=PATIENT) as broker:
        callbacks = write_requests(folder / "callbacks", _callbacks(seed))
        polls = write_requests(folder / "polls", (http_request("GET", f"/api/task/{name}") for name in seed.ids[:100]))
        constant = write_requests(folder / "constant", [http_request("GET", "/")])
        done = 0

        async def steady(subject: Subject, file: Path, other: Path) -> Load:
            """Return the load of the callbacks; the polls go on beside them."""
            nonlocal done
            rate = steady_load(subject, file, seconds, CALLBACKS_PER_SECOND, connections=32, offset=done)
            both = await asyncio.gather(rate, steady_load(subject, other, seconds, POLLS_PER_SECOND, connections=32))
            done += both[0].count if file is callbacks else 0
            return both[0]

        async with bench.bare(await broker.answer_bytes(f"/api/task/{seed.ids[0]}")) as bare:
            loads = await bench.interleave(
                {
                    "P": lambda: steady(bare, constant, constant),
                    "ours": lambda: steady(broker.subject, callbacks, polls),
                }
            )
        syncs: list[float] = []
        full: list[Load] = []
        for _ in range(rounds):
            await bench.calibrate()
            syncs.append(await syncs_per_second(folder, seconds))
            full.append(await full_load(broker.subject, callbacks, seconds, offset=done))
            done += full[-1].count
        await bench.calibrate()
    return [
        Row(
            path=PATH,
            what=f"callback at {CALLBACKS_PER_SECOND}/s beside {POLLS_PER_SECOND} polls/s, p99",
            reference=p99s(loads["P"], "P p99"),
            ours=p99s(loads["ours"]),
            goal=value_at_most(5.0),
            on_disk=True,
        ),
        Row(
            path=PATH,
            what="callback, full load",
            reference=Measured(name="F", unit="/s", values=tuple(syncs)),
            ours=rates(full),
            goal=ratio_at_least(0.8),
            note=f"p99 {max(load.p99 for load in full) * 1000:.0f} ms; the worker processes them at the same time",
            on_disk=True,
        ),
    ]


def _callbacks(seed: Seeded) -> list[bytes]:
    signs, now = signer(WEBHOOK_KEY), time.time()
    return [
        http_request("POST", callback_path(SECRET, task_id), _progress(job), signs.sign(job, now))
        for task_id, job in zip(seed.ids, seed.jobs, strict=True)
    ]


def _progress(job: str) -> dict[str, object]:
    data = {"taskId": job, "model": "google/nano-banana", "state": "generating", "param": json.dumps({"input": {}})}
    return {"code": 200, "msg": "success", "data": data}
