"""P2: polls that are answered with 304, beside polls answered with the task."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from tests.benchmarks.results import Measured, Row, ratio_at_most
from tests.benchmarks.support.bench import Bench
from tests.benchmarks.support.load import Load, full_load, http_request, rates, write_requests

PATH: Final = "P2"
SETTLE_SECONDS: Final = 0.5
"""Until the order has been accepted: the row changes then."""


async def measure(bench: Bench) -> list[Row]:
    folder, seconds = bench.folder("not-modified"), bench.options.seconds
    async with bench.provider(delay=None) as provider, bench.broker(provider) as broker:
        task_id = await broker.create()
        await broker.wait_for(task_id, "processing")
        path = f"/api/task/{task_id}"
        await asyncio.sleep(SETTLE_SECONDS)
        etag = {"If-None-Match": await broker.etag(path)}
        full = write_requests(folder / "full", [http_request("GET", path)])
        known = write_requests(folder / "known", [http_request("GET", path, headers=etag)])
        constant = write_requests(folder / "constant", [http_request("GET", "/")])
        async with bench.bare(await broker.answer_bytes(path)) as bare:
            loads = await bench.interleave(
                {
                    "P": partial(full_load, bare, constant, seconds),
                    "200": partial(full_load, broker.subject, full, seconds),
                    "304": partial(full_load, broker.subject, known, seconds),
                },
                warm_up=True,
            )
            if await broker.etag(path) != etag["If-None-Match"]:
                raise ValueError("the response changed while it was polled, so not every answer was a 304")
    return [
        Row(path=PATH, what="poll, 304", reference=rates(loads["P"], "P"), ours=rates(loads["304"])),
        Row(
            path=PATH,
            what="poll, 304: bytes of a response",
            reference=_bytes(loads["200"], "P1's poll"),
            ours=_bytes(loads["304"]),
            goal=ratio_at_most(0.25),
            is_timed=False,
        ),
        Row(
            path=PATH,
            what="poll, 304: CPU",
            reference=_cpu(loads["200"], "P1's poll"),
            ours=_cpu(loads["304"]),
            goal=ratio_at_most(1.05),
        ),
    ]


def _bytes(loads: list[Load], name: str = "") -> Measured:
    return Measured(name=name, unit="B", values=tuple(load.bytes / load.count for load in loads))


def _cpu(loads: list[Load], name: str = "") -> Measured:
    return Measured(name=name, unit="µs", values=tuple(load.cpu * 1e6 for load in loads))
