"""Measuring of all benchmarks: interleaved rounds, medians, separate processes, a table in Markdown."""

from __future__ import annotations

import asyncio
import hashlib
import math
import multiprocessing
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from statistics import median
from typing import Any, Final

import uvloop

from broker.logs import configure_logging

SPAWN: Final = multiprocessing.get_context("spawn")
START_SECONDS: Final = 60.0


# -- numbers


def cut(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of all are; not a number where there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1000:.1f}"


def mb(size: float) -> str:
    return f"{size / 1e6:.0f}"


async def interleaved(contestants: Mapping[str, Callable[[], Awaitable[float]]], rounds: int) -> dict[str, float]:
    """The median of each one's rounds. All take turns, and every other round goes the other way round."""
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            results[name].append(await contestants[name]())
    return {name: median(values) for name, values in results.items()}


async def per_second(work: Callable[[], Awaitable[int]], workers: int, seconds: float) -> float:
    """Return the throughput of concurrent `workers`. work: one call; returns the amount done."""
    begun = time.perf_counter()

    async def go_on() -> int:
        done = 0
        while time.perf_counter() - begun < seconds:
            done += await work()
        return done

    done = sum(await asyncio.gather(*(go_on() for _ in range(workers))))
    return done / (time.perf_counter() - begun)


def task_id(number: int) -> str:
    """As random as a real one, and known on both sides: Postgres has md5, too."""
    return f"task_{hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()}"


# -- printing


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


# -- processes of their own


@dataclass(frozen=True)
class Side:
    """Channel between a child process and its parent."""

    ready: Event
    go: Event
    stop: Event

    async def wait_for_go(self) -> None:
        self.ready.set()
        await asyncio.to_thread(self.go.wait)

    async def wait_for_stop(self) -> None:
        await asyncio.to_thread(self.stop.wait)


class Child:
    """A process that runs `work(side, *arguments)`, a coroutine function of some module, and returns its result."""

    def __init__(self, work: Callable[..., Awaitable[Any]], *arguments: object) -> None:
        self.side = Side(SPAWN.Event(), SPAWN.Event(), SPAWN.Event())
        self._pipe, theirs = SPAWN.Pipe(duplex=False)
        self._process = SPAWN.Process(target=_live, args=(theirs, work, self.side, arguments), daemon=True)
        self._process.start()
        theirs.close()

    async def ready(self) -> None:
        if not await asyncio.to_thread(self.side.ready.wait, START_SECONDS):
            raise TimeoutError("a process of the benchmark did not start")

    def go(self) -> None:
        self.side.go.set()

    async def result(self) -> Any:
        """Stop the child and return its result."""
        self.side.go.set()
        self.side.stop.set()
        answer = await asyncio.to_thread(self._pipe.recv)
        await asyncio.to_thread(self._process.join)
        return answer


def _live(pipe: Connection, work: Callable[..., Any], side: Side, arguments: tuple[object, ...]) -> None:
    configure_logging("ERROR", "console", None)
    pipe.send(uvloop.run(work(side, *arguments)))  # as the broker does
