#!/usr/bin/env python3
"""Discrete-event simulation of a deployment: every order from its arrival to its end, without waiting.

    scripts/simulate.py --orders 7200 --hours 2 --creates 20 --concurrency 100 --provider-seconds 30

The path is that of the code: create (ordering), intent and response (tasks.steps.submit), callback (callbacks.receive),
its processing (tasks.steps.callbacks), the image and the end (tasks.steps.download). Seven transactions; claims are
batched and cheap. `python -m tests.benchmarks.engines.postgres_paths` counts them, and measures the two
constants that depend on the machine: commits a second, and seconds of a processor per task.

Not simulated: polling clients, references, failures of the provider, network latency.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, fields
from itertools import count

WINDOW_SECONDS = 10.0
MAX_CHECK_SECONDS = 60.0
STEPS = 7
"""Steps of an order, each with a transaction: create, intent, response, callback, processing, image, end."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Capacity and load; each field is an option of the command."""

    orders: float = field(default=7200.0, metadata={"help": "orders per hour, at random times"})
    hours: float = field(default=1.0, metadata={"help": "duration of the arrivals; running orders are completed"})
    creates: int = field(default=20, metadata={"help": "new jobs that the provider accepts in any ten seconds"})
    concurrency: int = field(default=100, metadata={"help": "concurrent jobs at the provider"})
    provider_seconds: float = field(default=30.0, metadata={"help": "duration of a job, varied by half"})
    megabytes: float = field(default=2.0, metadata={"help": "size of an image"})
    network: float = field(default=100.0, metadata={"help": "megabytes per second of all processes together"})
    lost: float = field(default=1.0, metadata={"help": "percent of the callbacks that do not arrive"})
    check_after: float = field(default=30.0, metadata={"help": "seconds until the first status check"})
    processes: int = field(default=1, metadata={"help": "serve and worker processes"})
    cpu_ms: float = field(default=5.0, metadata={"help": "processor milliseconds per order"})
    download_seconds: float = field(default=1.0, metadata={"help": "download time of an image on an idle network"})
    downloads: int = field(default=32, metadata={"help": "concurrent downloads per process"})
    commits: float = field(default=2000.0, metadata={"help": "transactions per second of the database"})
    transactions: float = field(default=7.0, metadata={"help": "transactions per order"})
    seed: int = field(default=1, metadata={"help": "random seed; equal seeds give equal results"})


@dataclass(frozen=True, kw_only=True)
class SimulatedOrder:
    """Random properties of one order, independent of the deployment."""

    arrives_at: float
    job_seconds: float
    loses_callback: bool


def generate_orders(deployment: Deployment) -> list[SimulatedOrder]:
    chance = random.Random(deployment.seed)  # noqa: S311  # nothing here is a secret
    orders, at = list[SimulatedOrder](), chance.expovariate(deployment.orders / 3600)
    while at < deployment.hours * 3600:
        job_seconds = deployment.provider_seconds * chance.uniform(0.5, 1.5)
        orders.append(
            SimulatedOrder(
                arrives_at=at, job_seconds=job_seconds, loses_callback=chance.random() * 100 < deployment.lost
            )
        )
        at += chance.expovariate(deployment.orders / 3600)
    return orders


# -- time


Resume = Callable[[], None]


@dataclass
class Calendar:
    """Event queue; events of one time run in the order of their insertion."""

    now: float = 0.0
    _entries: list[tuple[float, int, Resume]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def schedule(self, time: float, event: Resume) -> None:
        heapq.heappush(self._entries, (time, next(self._numbers), event))

    def run(self) -> None:
        while self._entries:
            self.now, _, event = heapq.heappop(self._entries)
            event()


@dataclass
class Level:
    """A number over time, with the duration of each value. until: later changes do not count."""

    calendar: Calendar
    until: float = float("inf")
    value: int = 0
    peak: int = 0
    spent: dict[int, float] = field(default_factory=dict)
    _since: float = 0.0

    def add(self, change: int) -> None:
        self.close()
        self.value += change
        self.peak = max(self.peak, self.value)

    def close(self) -> None:
        now = min(self.calendar.now, self.until)
        self.spent[self.value] = self.spent.get(self.value, 0.0) + max(0.0, now - self._since)
        self._since = max(self._since, now)

    @property
    def area(self) -> float:
        return sum(value * seconds for value, seconds in self.spent.items())

    def percentile(self, percent: float) -> int:
        left = sum(self.spent.values()) * percent / 100
        for value in sorted(self.spent):
            left -= self.spent[value]
            if left <= 0:
                return value
        return max(self.spent, default=0)


# -- resources


class Station:
    """Servers with one first-in, first-out queue."""

    def __init__(self, calendar: Calendar, servers: int, until: float) -> None:
        self.servers = servers
        self.busy = Level(calendar, until)
        self._calendar = calendar
        self._waiting: deque[tuple[float, Resume]] = deque()

    def use(self, seconds: float, then: Resume) -> None:
        self._waiting.append((seconds, then))
        self._start_next()

    def _start_next(self) -> None:
        while self._waiting and self.busy.value < self.servers:
            seconds, then = self._waiting.popleft()
            self.busy.add(1)
            self._calendar.schedule(self._calendar.now + seconds, lambda then=then: self._finish_service(then))  # type: ignore[misc]

    def _finish_service(self, then: Resume) -> None:
        self.busy.add(-1)
        then()
        self._start_next()


class ProviderLimits:
    """Window and concurrency of the provider, counted as in storage.limits.provider_limits."""

    def __init__(self, calendar: Calendar, creates: int, concurrency: int, until: float) -> None:
        self.creates, self.concurrency = creates, concurrency
        self.running = Level(calendar, until)
        self.queue = Level(calendar)
        self.sent: list[float] = []
        self._calendar = calendar
        self._waiting: deque[Resume] = deque()
        self._next_admission_at = -1.0

    def enter(self, then: Resume) -> None:
        self.queue.add(1)
        self._waiting.append(then)
        self._admit_next()

    def leave(self) -> None:
        self.running.add(-1)
        self._admit_next()

    def _admit_next(self) -> None:
        while self._waiting and self.running.value < self.concurrency and self._opens_at() <= self._calendar.now:
            self.sent.append(self._calendar.now)
            self.running.add(1)
            self.queue.add(-1)
            self._waiting.popleft()()
        opens_at = self._opens_at()
        if self._waiting and self.running.value < self.concurrency and opens_at != self._next_admission_at:
            self._next_admission_at = opens_at  # one event per opening, however many orders wait
            self._calendar.schedule(opens_at, self._admit_next)

    def _opens_at(self) -> float:
        full = len(self.sent) >= self.creates
        return self.sent[-self.creates] + WINDOW_SECONDS if full else 0.0


# -- orders


@dataclass
class Timeline:
    """Times of one order."""

    order: SimulatedOrder
    queued_at: float = 0.0
    sent_at: float = 0.0
    ended_at: float = -1.0


Wait = Callable[[Resume], None]
"""Registers the continuation of an order that waits."""


class Simulation:
    """Simulation of all orders, from the first arrival to the last end."""

    def __init__(self, deployment: Deployment, orders: Sequence[SimulatedOrder] | None = None) -> None:
        self.deployment = deployment
        self.orders = generate_orders(deployment) if orders is None else orders
        self.calendar = Calendar()
        self.seconds = deployment.hours * 3600
        until = self.seconds  # completions after the last arrival would distort the utilization
        self.processes = Station(self.calendar, deployment.processes, until)
        self.database = Station(self.calendar, 1, until)
        self.network = Station(self.calendar, 1, until)
        self.slots = Station(self.calendar, deployment.downloads * deployment.processes, until)
        self.limits = ProviderLimits(self.calendar, deployment.creates, deployment.concurrency, until)
        self.timelines = [Timeline(order) for order in self.orders]

    def run(self) -> Simulation:
        for timeline in self.timelines:
            steps = self._run_order(timeline)
            self.calendar.schedule(timeline.order.arrives_at, lambda steps=steps: self._resume_order(steps))  # type: ignore[misc]
        self.calendar.run()
        stations = (self.processes, self.database, self.slots, self.network)
        for level in (self.limits.running, self.limits.queue, *(station.busy for station in stations)):
            level.close()
        return self

    def _resume_order(self, steps: Generator[Wait, None, None]) -> None:
        wait = next(steps, None)
        if wait is not None:
            wait(lambda: self._resume_order(steps))

    def _run_order(self, timeline: Timeline) -> Generator[Wait, None, None]:
        order = timeline.order
        yield from self._run_step()  # create
        timeline.queued_at = self.calendar.now
        yield self.limits.enter
        timeline.sent_at = self.calendar.now
        yield from self._run_step()  # intent
        yield from self._run_step()  # response
        yield self._wait_seconds(self._seconds_until_known(order))
        yield from self._run_step()  # callback or status check
        yield from self._run_step()  # processing
        self.limits.leave()
        yield from self._download_image()
        yield from self._run_step()  # image
        yield from self._run_step()  # end
        timeline.ended_at = self.calendar.now

    def _run_step(self) -> Generator[Wait, None, None]:
        cpu = self.deployment.cpu_ms / 1000 / STEPS
        commit = self.deployment.transactions / STEPS / self.deployment.commits
        yield lambda then: self.processes.use(cpu, then)
        yield lambda then: self.database.use(commit, then)

    def _download_image(self) -> Generator[Wait, None, None]:
        yield lambda then: self.slots.use(self.deployment.download_seconds, then)
        yield lambda then: self.network.use(self.deployment.megabytes / self.deployment.network, then)

    def _wait_seconds(self, seconds: float) -> Wait:
        return lambda then: self.calendar.schedule(self.calendar.now + seconds, then)

    def _seconds_until_known(self, order: SimulatedOrder) -> float:
        """Return the time until the callback, or until the first status check after the end of the job."""
        if not order.loses_callback:
            return order.job_seconds
        checked, pause = self.deployment.check_after, self.deployment.check_after
        while checked < order.job_seconds:
            pause = min(pause * 1.5, max(MAX_CHECK_SECONDS, self.deployment.check_after))
            checked += pause
        return checked

    # -- results

    @property
    def waits(self) -> list[float]:
        """Seconds in the queue of each order."""
        return [timeline.sent_at - timeline.queued_at for timeline in self.timelines]

    @property
    def durations(self) -> list[float]:
        return [timeline.ended_at - timeline.order.arrives_at for timeline in self.timelines]

    def utilization(self) -> dict[str, float]:
        """Return the utilization of each resource during the arrivals; 1 is always busy."""
        sent = sum(at <= self.seconds for at in self.limits.sent)
        return {
            "database": self.database.busy.area / self.seconds,
            "processes": self.processes.busy.area / self.seconds / self.deployment.processes,
            "provider's window": sent / (self.deployment.creates * self.seconds / WINDOW_SECONDS),
            "provider's concurrency": self.limits.running.area / self.seconds / self.deployment.concurrency,
            "downloads": self.slots.busy.area / self.seconds / self.slots.servers,
            "network": self.network.busy.area / self.seconds,
        }

    def report(self) -> str:
        if not self.timelines:
            return "no orders: raise --orders or --hours"
        use, queue = self.utilization(), self.limits.queue
        first = max(use, key=lambda name: use[name])
        late = max(0.0, max(timeline.ended_at for timeline in self.timelines) - self.seconds)
        return "\n".join(
            [
                "| | |",
                "|---|---|",
                f"| orders | {len(self.timelines)}, the last one ended {late:.0f} s after hours |",
                f"| queue | p50 {queue.percentile(50)}, p99 {queue.percentile(99)}, at the most {queue.peak} |",
                f"| time in the queue | {_format_percentiles(self.waits)} |",
                f"| from order to end | {_format_percentiles(self.durations)} |",
                *(f"| {name} | {share * 100:.1f} % busy |" for name, share in use.items()),
                f"| first at its limit | {first} |",
            ]
        )


def _format_percentiles(seconds: Sequence[float]) -> str:
    return f"p50 {percentile(seconds, 50):.1f} s, p99 {percentile(seconds, 99):.1f} s"


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for one in fields(Deployment):
        kind = type(one.default)
        parser.add_argument(
            f"--{one.name.replace('_', '-')}", type=kind, default=one.default, help=one.metadata["help"]
        )
    deployment = Deployment(**vars(parser.parse_args()))
    sys.stdout.write(f"{Simulation(deployment).run().report()}\n")


if __name__ == "__main__":
    main()
