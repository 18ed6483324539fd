"""Metric declarations: one metric per arrow of the state drawing, labels from closed sets only.

docs/operating.md explains each of them and the values that need attention; a test compares both.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Final, Generic, Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CALLBACK_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
CALLBACK_LAG_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
DELIVERY_BUCKETS = (0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 1800.0, 7200.0, 36000.0, 144000.0)
LOCAL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds of operations that normally take milliseconds."""
PROVIDER_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 7200.0)
"""Seconds of operations that wait for a provider."""


Sample = tuple[str, dict[str, str], float]
"""Ending of the name, labels, value."""


class Tally(Protocol):
    """What is counted under one name and one set of labels."""

    def samples(self) -> Iterable[Sample]:
        """Return what the metrics page shows of it."""


T = TypeVar("T", bound=Tally)
_spell_bound: Final[Callable[[float], str]] = floatToGoString


class EventCount:
    """Counter for the thread of the event loop alone: so it needs no lock, and takes a fifth of the library's time."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add an amount, which is not negative."""
        self._count += amount

    def samples(self) -> Iterable[Sample]:
        return [("_total", {}, self._count)]


class Distribution:
    """Histogram for the thread of the event loop alone, like `EventCount`."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: the upper ones, which are included, in rising order."""
        self._bounds = bounds
        self._counts = [0.0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, amount: float) -> None:
        self._sum += amount
        self._counts[bisect_left(self._bounds, amount)] += 1.0

    def samples(self) -> Iterable[Sample]:
        count = 0.0
        for bound, of_bucket in zip((*self._bounds, math.inf), self._counts, strict=True):
            count += of_bucket
            yield "_bucket", {"le": _spell_bound(bound)}, count
        yield "_count", {}, count
        yield "_sum", {}, self._sum


class Family(Collector, Generic[T]):
    """The tallies of one name, by the values of their labels; the library's classes show them in the same way."""

    labels: Callable[..., T]
    """Returns the tally of these values, in the order of the names; a new one begins at zero."""

    def __init__(self, empty: Metric, names: Sequence[str], new_tally: Callable[[], T], *, shows_start: bool) -> None:
        """empty: the family without samples. shows_start: with the time at which each tally began."""
        self._empty = empty
        self._names = names
        self._new_tally = new_tally
        self._shows_start = shows_start
        self._tallies: dict[tuple[str, ...], tuple[T, float]] = {}
        self.labels = cache(self._find_tally)  # to find a tally took as long as to count

    def _find_tally(self, *values: object) -> T:
        if len(values) != len(self._names):
            raise ValueError(f"{self._empty.name} has the labels {', '.join(self._names)}")
        return self._tallies.setdefault(tuple(map(str, values)), (self._new_tally(), time.time()))[0]

    def describe(self) -> Iterable[Metric]:
        return [self._empty]

    def collect(self) -> Iterator[Metric]:
        family = Metric(self._empty.name, self._empty.documentation, self._empty.type)
        for values, (tally, began_at) in self._tallies.items():
            of_tally = dict(zip(self._names, values, strict=True))
            for ending, labels, value in tally.samples():
                family.add_sample(family.name + ending, {**of_tally, **labels}, value)
            if self._shows_start:
                family.add_sample(f"{family.name}_created", of_tally, began_at)
        yield family


def _library_shows_starts() -> bool:
    """Return whether the library shows when counters began, which its users can turn off."""
    (counter,) = Counter("started", "Started", registry=None).collect()
    return any(sample.name == "started_created" for sample in counter.samples)


class Metrics:
    """All metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shows_starts = _library_shows_starts()
        self._declare_requests()
        self._declare_tasks()
        self._declare_providers()
        self._declare_callbacks()
        self._declare_results()
        self._declare_deliveries()
        self._declare_process()

    def _declare_requests(self) -> None:
        self.request_errors = self._counters(
            "broker_request_errors", "Requests answered with an error, by code", "code"
        )
        self.requests = self._counters(
            "broker_http_requests", "HTTP requests by operation and status", "operation", "status"
        )

        self.uploaded_files = self._counters(
            "broker_uploaded_files", "Files that callers uploaded ahead of their orders", "media_type"
        )

        self.password_hashes = self._counter("broker_password_hashes", "Passwords hashed or verified with argon2id")
        self.logins = self._counters("broker_logins", "Logins by outcome", "outcome")

    def _declare_tasks(self) -> None:
        self.tasks = self._gauge("broker_tasks", "Tasks by state", "state")
        self.transitions = self._counters("broker_task_transitions", "State changes of tasks", "from", "to")
        self.state_seconds = self._histograms(
            "broker_state_seconds", "Time that a task spent in a state", PROVIDER_BUCKETS, "state"
        )
        self.queue_seconds = self._histograms(
            "broker_queue_seconds", "Time from the order to its first submission", PROVIDER_BUCKETS, "provider"
        )
        self.task_seconds = self._histograms(
            "broker_task_seconds",
            "Time from the order to its first end, by outcome",
            PROVIDER_BUCKETS,
            "model",
            "outcome",
        )
        self.task_attempts = self._histogram("broker_task_attempts", "Submissions per ended task", (0, 1, 2, 3, 5))
        self.late_results = self._counters(
            "broker_late_results", "Images that arrived after their task was shown as failed", "model"
        )

    def _declare_providers(self) -> None:
        self.submissions = self._counters(
            "broker_submissions", "Orders submitted to a provider, by outcome", "provider", "outcome"
        )
        self.submission_seconds = self._histograms(
            "broker_submission_seconds", "Time a provider took to answer an order", PROVIDER_BUCKETS, "provider"
        )
        self.unknown_outcomes = self._counters(
            "broker_unknown_outcomes", "Attempts whose outcome and cost stayed unknown", "provider"
        )
        self.unclassified_errors = self._counters(
            "broker_unclassified_errors", "Provider errors that its error table does not contain", "provider"
        )
        self.checks = self._counters("broker_provider_checks", "Status checks of jobs, by answer", "provider", "answer")
        self.provider_cooldown = self._gauge(
            "broker_provider_cooldown_seconds", "Time until the next submission with a key", "provider", "key_id"
        )
        self.provider_circuit = self._gauge(
            "broker_provider_circuit", "1 for the state of a key's circuit breaker", "provider", "key_id", "state"
        )
        self.provider_paused = self._gauge("broker_provider_paused", "1 if an operator paused the provider", "provider")
        self.order_routes = self._counters(
            "broker_order_routes", "Ordered images, by what the router made of each provider", "provider", "role"
        )
        self.orders_moved = self._counters(
            "broker_orders_moved", "Orders that went on to another provider", "from", "to"
        )
        self.credits_left = self._gauge(
            "broker_provider_credits", "Balance of a provider's account, in its unit", "provider", "key_id"
        )

        self.low_balances = self._counters(
            "broker_balance_low", "Falls of a balance below the price of a few images", "provider", "key_id"
        )
        self.daily_budget = self._gauge(
            "broker_daily_budget_usd", "Limit and used part of the daily budget, reservations included", "kind"
        )

    def _declare_callbacks(self) -> None:
        self.callbacks = self._counters(
            "broker_callbacks", "Callbacks received, by verification result", "provider", "verification"
        )
        self.callback_ack_seconds = self._histogram(
            "broker_callback_ack_seconds",
            "Time from the first byte of a callback to its acknowledgement",
            CALLBACK_BUCKETS,
        )
        self.callback_lag = self._histograms(
            "broker_callback_lag_seconds",
            "Time from the end of a job, by the provider's clock, to its accepted callback",
            CALLBACK_LAG_BUCKETS,
            "provider",
        )
        self.callbacks_missing = self._counters(
            "broker_callbacks_missing",
            "Ended jobs found by a status check, their callback missing",
            "provider",
        )
        self.public_address = self._gauge(
            "broker_public_address", "1 if the last probe of the public URL was verified", "source"
        )
        self.address_changes = self._counters(
            "broker_public_address_changes", "Public URLs found, changed or lost", "change"
        )

    def _declare_results(self) -> None:
        self.downloads = self._counters("broker_downloads", "Downloads of results, by outcome", "outcome")
        self.download_retries = self._counter("broker_download_retries", "Repeated downloads of results")
        self.download_bytes = self._counter("broker_download_bytes", "Bytes of results downloaded")
        self.download_seconds = self._histogram(
            "broker_download_seconds", "Time to download and store one result", PROVIDER_BUCKETS
        )
        self.duplicate_results = self._counters(
            "broker_duplicate_results", "Second results of one order, paid twice", "provider"
        )
        self.thumbnails = self._counters("broker_thumbnails", "Thumbnails rendered on request, by outcome", "outcome")

    def _declare_deliveries(self) -> None:
        self.deliveries = self._counters(
            "broker_deliveries", "Attempts to deliver a webhook, by outcome", "type", "outcome"
        )
        self.delivery_seconds = self._histogram(
            "broker_delivery_seconds",
            "Time from the end of a task to the caller's response to its webhook",
            DELIVERY_BUCKETS,
        )
        self.deliveries_pending = self._gauge("broker_deliveries_pending", "Webhooks not delivered yet")

    def _declare_process(self) -> None:
        self.steps_running = self._gauge("broker_steps_running", "Steps in progress in this process")
        self.steps_failed = self._counters("broker_steps_failed", "Steps that ended in an unexpected error", "step")
        self.database_seconds = self._histograms(
            "broker_database_seconds", "Time of a database operation of the worker", LOCAL_BUCKETS, "operation"
        )
        self.loop_lag = self._histogram(
            "broker_event_loop_lag_seconds", "Delay of the event loop, measured once a second", LOCAL_BUCKETS
        )
        self.build = Info("broker_build", "Versions of the broker and of Python", registry=self.registry)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _counter(self, name: str, text: str) -> EventCount:
        return self._counters(name, text).labels()

    def _counters(self, name: str, text: str, *labels: str) -> Family[EventCount]:
        return self._register(Metric(name, text, "counter"), labels, EventCount)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Distribution:
        return self._histograms(name, text, bounds).labels()

    def _histograms(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Family[Distribution]:
        return self._register(Metric(name, text, "histogram"), labels, partial(Distribution, bounds))

    def _register(self, empty: Metric, labels: Sequence[str], new_tally: Callable[[], T]) -> Family[T]:
        family = Family(empty, labels, new_tally, shows_start=self._shows_starts)
        self.registry.register(family)
        return family
