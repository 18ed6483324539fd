"""The work that goes on while something else is measured: pollers and creators at a steady rate, in a process apart.

A request is due at its moment, whether or not the one before has been answered, and its time counts from that moment:
waiting for the others is included.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from storage.ids import new_task_id
from storage.sql.postgres import PostgresDatabase
from storage.tasks import DUE_CHANNEL, Task, Tasks
from tests.benchmarks.engines.measuring import Side, task_id

POLLS: Final = 200
CREATES: Final = 20
NO_PROVIDER: Final = "none"
"""The provider of the created tasks: no worker has it, so they only wait."""
LONG: Final = 90 * 86_400.0


@dataclass
class Seen:
    """(moment on the monotonic clock, seconds it took) of each request."""

    polls: list[tuple[float, float]] = field(default_factory=list)
    creates: list[tuple[float, float]] = field(default_factory=list)


def new_task(provider: str = NO_PROVIDER) -> Task:
    now = time.time()
    name = new_task_id(now)
    return Task(
        id=name,
        batch=name,
        caller="house:local",
        due_at=now,
        provider=provider,
        model="nano-banana",
        mode="text-to-image",
        prompt="a red bicycle in front of a yellow house, late afternoon, long shadows, like a photo of the sixties",
        deadline_at=now + LONG,
        created_at=now,
        updated_at=now,
        entered_at=now,
    )


async def keep_company(side: Side, url: str, known: int) -> Seen:
    """Poll random ones of `known` tasks and create new ones until `side` says stop."""
    seen = Seen()
    async with PostgresDatabase(url) as database:
        tasks = Tasks(database)

        async def poll() -> None:
            await tasks.get(task_id(random.randrange(known)))

        async def create() -> None:
            await database.transact(tasks.insert_task(new_task()), wake=(DUE_CHANNEL,))

        await side.wait_for_go()
        going = [
            asyncio.create_task(_steadily(poll, POLLS, seen.polls)),
            asyncio.create_task(_steadily(create, CREATES, seen.creates)),
        ]
        await side.wait_for_stop()
        for one in going:
            one.cancel()
        await asyncio.gather(*going, return_exceptions=True)
    return seen


async def _steadily(request: Callable[[], Awaitable[None]], rate: float, seen: list[tuple[float, float]]) -> None:
    running: set[asyncio.Task[None]] = set()
    due = time.monotonic()

    async def timed(at: float) -> None:
        await request()
        seen.append((at, time.monotonic() - at))

    try:
        while True:
            await asyncio.sleep(due - time.monotonic())
            one = asyncio.create_task(timed(due))
            running.add(one)
            one.add_done_callback(running.discard)
            due += 1 / rate
    finally:
        await asyncio.gather(*running, return_exceptions=True)
