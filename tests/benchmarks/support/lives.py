"""Whole lives over HTTP: tasks created, submitted, called back and downloaded, until all have ended."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anyio import to_thread

from tests.benchmarks.results import Measured
from tests.benchmarks.support.bench import Broker
from tests.benchmarks.support.load import counted_load

CREATORS: Final = 32
MAX_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.05

Ended = Callable[[], tuple[int, float]]
"""Returns how many tasks have not ended, and the moment of the last end."""


@dataclass(frozen=True, kw_only=True)
class Lives:
    """rate: lives per second, from the first create to the last end. cpu: CPU seconds of the broker per life."""

    rate: float
    cpu: float


async def live(broker: Broker, creates: Path, count: int, ended: Ended | None = None) -> Lives:
    """Create so many tasks over 32 connections, and wait until all have ended."""
    subject, look = broker.subject, ended or (lambda: ended_in_sqlite(broker.database))
    began, used = time.time(), subject.cpu_seconds()
    await counted_load(subject, creates, count, connections=CREATORS)
    last = await until_ended(look)
    return Lives(rate=count / (last - began), cpu=(subject.cpu_seconds() - used) / count)


async def until_ended(look: Ended) -> float:
    """Wait until all tasks have ended; return the moment of the last end."""
    ends_at = time.time() + MAX_SECONDS
    while (found := await to_thread.run_sync(look))[0]:
        if time.time() > ends_at:
            raise TimeoutError(f"{found[0]} tasks have not ended")
        await asyncio.sleep(_LOOK_SECONDS)
    return found[1]


def lives_per_second(lives: list[Lives], name: str = "") -> Measured:
    return Measured(name=name, unit="/s", values=tuple(one.rate for one in lives), cpu=tuple(one.cpu for one in lives))


def ended_in_sqlite(database: Path) -> tuple[int, float]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        (left,) = connection.execute("SELECT count(*) FROM tasks WHERE ended_at IS NULL").fetchone()
        last = None if left else connection.execute("SELECT max(ended_at) FROM tasks").fetchone()[0]
    return left, last or 0.0
