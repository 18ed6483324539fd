"""P1: polls of an active task, and of any of many stored tasks, beside bare Starlette."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.benchmarks.results import Row, number, ratio_at_least, ratio_at_most
from tests.benchmarks.support.bench import Bench
from tests.benchmarks.support.load import full_load, http_request, p99s, rates, write_requests
from tests.benchmarks.support.seed import seeded

PATH: Final = "P1"


async def measure(bench: Bench) -> list[Row]:
    stored = bench.options.size(100_000, 1_000_000)
    seed, folder, seconds = await seeded(bench, stored), bench.folder("polls"), bench.options.seconds
    data = await seed.copy(folder / "data")
    async with bench.provider(delay=None) as provider, bench.broker(provider, data=data) as broker:
        task_id = await broker.create()
        await broker.wait_for(task_id, "processing")
        active = http_request("GET", f"/api/task/{task_id}")
        one = write_requests(folder / "active", [active])
        many = write_requests(folder / "any", (http_request("GET", f"/api/task/{name}") for name in seed.ids))
        constant = write_requests(folder / "constant", [http_request("GET", "/")])
        async with bench.bare(await broker.answer_bytes(f"/api/task/{task_id}")) as bare:
            loads = await bench.interleave(
                {
                    "P": partial(full_load, bare, constant, seconds),
                    "active": partial(full_load, broker.subject, one, seconds),
                    "any": partial(full_load, broker.subject, many, seconds),
                },
                warm_up=True,
            )
    reference, what = rates(loads["P"], "P"), f"poll of any of {number(stored)} stored tasks"
    tails = p99s(loads["P"], "P p99")
    return [
        Row(
            path=PATH,
            what="poll of an active task",
            reference=reference,
            ours=rates(loads["active"]),
            goal=ratio_at_least(1.2),
        ),
        Row(path=PATH, what=what, reference=reference, ours=rates(loads["any"]), goal=ratio_at_least(0.75)),
        Row(
            path=PATH,
            what="poll of an active task, p99",
            reference=tails,
            ours=p99s(loads["active"]),
            goal=ratio_at_most(1.6),
        ),
        Row(path=PATH, what=f"{what}, p99", reference=tails, ours=p99s(loads["any"]), goal=ratio_at_most(1.6)),
    ]
