#!/usr/bin/env python3
"""What a day would be like on machines that are not here: the way of every order, event by event, without waiting.

    scripts/simulate.py --orders 7200 --hours 2 --creates 20 --places 100 --provider-seconds 30

The path is that of the code: create (ordering), intent and response (tasks.steps.submit), callback (callbacks.receive),
its processing (tasks.steps.callbacks), the image and the end (tasks.steps.download). Seven transactions; claims are
shared by many and cost little. `python -m tests.benchmarks.postgres_paths` counts them, and measures the two
constants that depend on the machine: commits a second, and seconds of a processor per life.

Left out: those who poll, references, failures of the provider, what the network costs besides its bytes.
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
CHECK_MOST = 60.0
STEPS = 7
"""Of a life, each with a transaction: create, intent, answer, callback, news, image, end."""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """What there is, and what is asked of it; each field is an option of the command."""

    orders: float = field(default=7200.0, metadata={"help": "orders an hour, at random moments"})
    hours: float = field(default=1.0, metadata={"help": "for how long orders come; then everything is finished"})
    creates: int = field(default=20, metadata={"help": "new jobs that the provider takes in any ten seconds"})
    places: int = field(default=100, metadata={"help": "jobs that may be under way at the provider"})
    provider_seconds: float = field(
        default=30.0, metadata={"help": "that an image takes there, half to one and a half"}
    )
    megabytes: float = field(default=2.0, metadata={"help": "of an image"})
    network: float = field(default=100.0, metadata={"help": "megabytes a second, all processes together"})
    lost: float = field(default=1.0, metadata={"help": "percent of the callbacks that never come"})
    check_after: float = field(default=30.0, metadata={"help": "seconds until the provider is asked instead"})
    processes: int = field(default=1, metadata={"help": "serve and worker processes"})
    cpu_ms: float = field(default=5.0, metadata={"help": "milliseconds of a processor per life"})
    download_seconds: float = field(default=1.0, metadata={"help": "that an image takes on an idle line"})
    downloads: int = field(default=20, metadata={"help": "images brought home at once, per process"})
    commits: float = field(default=2000.0, metadata={"help": "transactions a second that the database takes"})
    transactions: float = field(default=7.0, metadata={"help": "per life"})
    seed: int = field(default=1, metadata={"help": "the same seed, the same numbers"})


@dataclass(frozen=True, kw_only=True)
class Order:
    """What chance has decided about one order, whatever the plant is like. misses: whether its callback is lost."""

    arrives_at: float
    takes: float
    misses: bool


def orders_of(plant: Plant) -> list[Order]:
    chance = random.Random(plant.seed)  # noqa: S311  # nothing here is a secret
    orders, at = list[Order](), chance.expovariate(plant.orders / 3600)
    while at < plant.hours * 3600:
        takes = plant.provider_seconds * chance.uniform(0.5, 1.5)
        orders.append(Order(arrives_at=at, takes=takes, misses=chance.random() * 100 < plant.lost))
        at += chance.expovariate(plant.orders / 3600)
    return orders


# -- time


Resume = Callable[[], None]


@dataclass
class Calendar:
    """What happens when. Two things of one moment happen in the order in which they were written down."""

    now: float = 0.0
    _entries: list[tuple[float, int, Resume]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def at(self, moment: float, what: Resume) -> None:
        heapq.heappush(self._entries, (moment, next(self._numbers), what))

    def run(self) -> None:
        while self._entries:
            self.now, _, what = heapq.heappop(self._entries)
            what()


@dataclass
class Level:
    """A number that changes now and then, and how long it had each value. until: changes after it do not count."""

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

    def cut(self, percent: float) -> int:
        left = sum(self.spent.values()) * percent / 100
        for value in sorted(self.spent):
            left -= self.spent[value]
            if left <= 0:
                return value
        return max(self.spent, default=0)


# -- resources


class Station:
    """Some servers with one queue, first come first served."""

    def __init__(self, calendar: Calendar, servers: int, until: float) -> None:
        self.servers = servers
        self.busy = Level(calendar, until)
        self._calendar = calendar
        self._waiting: deque[tuple[float, Resume]] = deque()

    def use(self, seconds: float, then: Resume) -> None:
        self._waiting.append((seconds, then))
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self.busy.value < self.servers:
            seconds, then = self._waiting.popleft()
            self.busy.add(1)
            self._calendar.at(self._calendar.now + seconds, lambda then=then: self._served(then))  # type: ignore[misc]

    def _served(self, then: Resume) -> None:
        self.busy.add(-1)
        then()
        self._serve()


class Lane:
    """Window and concurrency of the provider, counted as in storage.provider_limits: any ten seconds; running jobs."""

    def __init__(self, calendar: Calendar, creates: int, places: int, until: float) -> None:
        self.creates, self.places = creates, places
        self.under_way = Level(calendar, until)
        self.queue = Level(calendar)
        self.sent: list[float] = []
        self._calendar = calendar
        self._waiting: deque[Resume] = deque()

    def enter(self, then: Resume) -> None:
        self.queue.add(1)
        self._waiting.append(then)
        self._admit()

    def leave(self) -> None:
        self.under_way.add(-1)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.under_way.value < self.places and self._opens_at() <= self._calendar.now:
            self.sent.append(self._calendar.now)
            self.under_way.add(1)
            self.queue.add(-1)
            self._waiting.popleft()()
        if self._waiting and self.under_way.value < self.places:
            self._calendar.at(self._opens_at(), self._admit)

    def _opens_at(self) -> float:
        full = len(self.sent) >= self.creates
        return self.sent[-self.creates] + WINDOW_SECONDS if full else 0.0


# -- a life


@dataclass
class Story:
    """What became of one order; moments."""

    order: Order
    queued_at: float = 0.0
    sent_at: float = 0.0
    ended_at: float = -1.0


Wish = Callable[[Resume], None]
"""Something to wait for: it is told how to go on."""


class Simulation:
    """All orders of a plant, from the first arrival to the last end."""

    def __init__(self, plant: Plant, orders: Sequence[Order] | None = None) -> None:
        self.plant = plant
        self.orders = orders_of(plant) if orders is None else orders
        self.calendar = Calendar()
        self.seconds = plant.hours * 3600
        until = self.seconds  # what is only finished afterwards says nothing about how busy it was
        self.processes = Station(self.calendar, plant.processes, until)
        self.database = Station(self.calendar, 1, until)
        self.network = Station(self.calendar, 1, until)
        self.slots = Station(self.calendar, plant.downloads * plant.processes, until)
        self.lane = Lane(self.calendar, plant.creates, plant.places, until)
        self.stories = [Story(order) for order in self.orders]

    def run(self) -> Simulation:
        for story in self.stories:
            life = self._life(story)
            self.calendar.at(story.order.arrives_at, lambda life=life: self._go_on(life))  # type: ignore[misc]
        self.calendar.run()
        stations = (self.processes, self.database, self.slots, self.network)
        for level in (self.lane.under_way, self.lane.queue, *(station.busy for station in stations)):
            level.close()
        return self

    def _go_on(self, life: Generator[Wish, None, None]) -> None:
        wish = next(life, None)
        if wish is not None:
            wish(lambda: self._go_on(life))

    def _life(self, story: Story) -> Generator[Wish, None, None]:
        order = story.order
        yield from self._step()  # create
        story.queued_at = self.calendar.now
        yield self.lane.enter
        story.sent_at = self.calendar.now
        yield from self._step()  # intent
        yield from self._step()  # answer
        yield self._after(self._heard_after(order))
        yield from self._step()  # callback, or the question instead
        yield from self._step()  # news
        self.lane.leave()
        yield from self._bring_home()
        yield from self._step()  # image
        yield from self._step()  # end
        story.ended_at = self.calendar.now

    def _step(self) -> Generator[Wish, None, None]:
        cpu = self.plant.cpu_ms / 1000 / STEPS
        commit = self.plant.transactions / STEPS / self.plant.commits
        yield lambda then: self.processes.use(cpu, then)
        yield lambda then: self.database.use(commit, then)

    def _bring_home(self) -> Generator[Wish, None, None]:
        yield lambda then: self.slots.use(self.plant.download_seconds, then)
        yield lambda then: self.network.use(self.plant.megabytes / self.plant.network, then)

    def _after(self, seconds: float) -> Wish:
        return lambda then: self.calendar.at(self.calendar.now + seconds, then)

    def _heard_after(self, order: Order) -> float:
        """When we know that the image is made: by the callback, or by the first question after it."""
        if not order.misses:
            return order.takes
        asked, pause = self.plant.check_after, self.plant.check_after
        while asked < order.takes:
            pause = min(pause * 1.5, max(CHECK_MOST, self.plant.check_after))
            asked += pause
        return asked

    # -- what is told

    @property
    def waits(self) -> list[float]:
        """Seconds in the queue, of each order."""
        return [story.sent_at - story.queued_at for story in self.stories]

    @property
    def lives(self) -> list[float]:
        return [story.ended_at - story.order.arrives_at for story in self.stories]

    def use(self) -> dict[str, float]:
        """How busy everything was while orders came; 1 = all the time."""
        sent = sum(at <= self.seconds for at in self.lane.sent)
        return {
            "database": self.database.busy.area / self.seconds,
            "processes": self.processes.busy.area / self.seconds / self.plant.processes,
            "provider's window": sent / (self.plant.creates * self.seconds / WINDOW_SECONDS),
            "provider's places": self.lane.under_way.area / self.seconds / self.plant.places,
            "downloads": self.slots.busy.area / self.seconds / self.slots.servers,
            "network": self.network.busy.area / self.seconds,
        }

    def told(self) -> str:
        if not self.stories:
            return "no order came: let more of them come, or for longer"
        use, queue = self.use(), self.lane.queue
        first = max(use, key=lambda name: use[name])
        late = max(0.0, max(story.ended_at for story in self.stories) - self.seconds)
        return "\n".join(
            [
                "| | |",
                "|---|---|",
                f"| orders | {len(self.stories)}, the last one ended {late:.0f} s after hours |",
                f"| queue | p50 {queue.cut(50)}, p99 {queue.cut(99)}, at the most {queue.peak} |",
                f"| time in the queue | p50 {cut(self.waits, 50):.1f} s, p99 {cut(self.waits, 99):.1f} s |",
                f"| from order to end | p50 {cut(self.lives, 50):.1f} s, p99 {cut(self.lives, 99):.1f} s |",
                *(f"| {name} | {share * 100:.1f} % busy |" for name, share in use.items()),
                f"| first at its limit | {first} |",
            ]
        )


def cut(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for one in fields(Plant):
        kind = type(one.default)
        parser.add_argument(
            f"--{one.name.replace('_', '-')}", type=kind, default=one.default, help=one.metadata["help"]
        )
    plant = Plant(**vars(parser.parse_args()))
    sys.stdout.write(f"{Simulation(plant).run().told()}\n")


if __name__ == "__main__":
    main()
