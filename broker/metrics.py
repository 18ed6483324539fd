"""Metric declarations: one metric per arrow of the state drawing, labels from closed sets only.

docs/operating.md explains each of them and the values that need attention; a test compares both.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics import MetricWrapperBase

CALLBACK_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
CALLBACK_LAG_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
DELIVERY_BUCKETS = (0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 1800.0, 7200.0, 36000.0, 144000.0)
LOCAL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds of operations that normally take milliseconds."""
PROVIDER_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 7200.0)
"""Seconds of operations that wait for a provider."""


class Metrics:
    """All metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._declare_requests()
        self._declare_tasks()
        self._declare_providers()
        self._declare_callbacks()
        self._declare_results()
        self._declare_deliveries()
        self._declare_process()

    def _declare_requests(self) -> None:
        self.request_errors = self._counter("broker_request_errors", "Requests answered with an error, by code", "code")
        self.requests = self._counter(
            "broker_http_requests", "HTTP requests by operation and status", "operation", "status"
        )

        self.uploaded_files = self._counter(
            "broker_uploaded_files", "Files that callers uploaded ahead of their orders", "media_type"
        )

        self.password_hashes = self._counter("broker_password_hashes", "Passwords hashed or verified with argon2id")
        self.logins = self._counter("broker_logins", "Logins by outcome", "outcome")

    def _declare_tasks(self) -> None:
        self.tasks = self._gauge("broker_tasks", "Tasks by state", "state")
        self.transitions = self._counter("broker_task_transitions", "State changes of tasks", "from", "to")
        self.state_seconds = self._histogram(
            "broker_state_seconds", "Time that a task spent in a state", PROVIDER_BUCKETS, "state"
        )
        self.queue_seconds = self._histogram(
            "broker_queue_seconds", "Time from the order to its first submission", PROVIDER_BUCKETS, "provider"
        )
        self.task_seconds = self._histogram(
            "broker_task_seconds",
            "Time from the order to its first end, by outcome",
            PROVIDER_BUCKETS,
            "model",
            "outcome",
        )
        self.task_attempts = self._histogram("broker_task_attempts", "Submissions per ended task", (0, 1, 2, 3, 5))
        self.late_results = self._counter(
            "broker_late_results", "Images that arrived after their task was shown as failed", "model"
        )

    def _declare_providers(self) -> None:
        self.submissions = self._counter(
            "broker_submissions", "Orders submitted to a provider, by outcome", "provider", "outcome"
        )
        self.submission_seconds = self._histogram(
            "broker_submission_seconds", "Time a provider took to answer an order", PROVIDER_BUCKETS, "provider"
        )
        self.unknown_outcomes = self._counter(
            "broker_unknown_outcomes", "Attempts whose outcome and cost stayed unknown", "provider"
        )
        self.unclassified_errors = self._counter(
            "broker_unclassified_errors", "Provider errors that its error table does not contain", "provider"
        )
        self.checks = self._counter("broker_provider_checks", "Status checks of jobs, by answer", "provider", "answer")
        self.provider_cooldown = self._gauge(
            "broker_provider_cooldown_seconds", "Time until the next submission with a key", "provider", "key_id"
        )
        self.provider_circuit = self._gauge(
            "broker_provider_circuit", "1 for the state of a key's circuit breaker", "provider", "key_id", "state"
        )
        self.provider_paused = self._gauge("broker_provider_paused", "1 if an operator paused the provider", "provider")
        self.order_routes = self._counter(
            "broker_order_routes", "Ordered images, by what the router made of each provider", "provider", "role"
        )
        self.orders_moved = self._counter(
            "broker_orders_moved", "Orders that went on to another provider", "from", "to"
        )
        self.credits_left = self._gauge(
            "broker_provider_credits", "Balance of a provider's account, in its unit", "provider", "key_id"
        )

        self.low_balances = self._counter(
            "broker_balance_low", "Falls of a balance below the price of a few images", "provider", "key_id"
        )
        self.daily_budget = self._gauge(
            "broker_daily_budget_usd", "Limit and used part of the daily budget, reservations included", "kind"
        )

    def _declare_callbacks(self) -> None:
        self.callbacks = self._counter(
            "broker_callbacks", "Callbacks received, by verification result", "provider", "verification"
        )
        self.callback_ack_seconds = self._histogram(
            "broker_callback_ack_seconds",
            "Time from the first byte of a callback to its acknowledgement",
            CALLBACK_BUCKETS,
        )
        self.callback_lag = self._histogram(
            "broker_callback_lag_seconds",
            "Time from the end of a job, by the provider's clock, to its accepted callback",
            CALLBACK_LAG_BUCKETS,
            "provider",
        )
        self.callbacks_missing = self._counter(
            "broker_callbacks_missing",
            "Ended jobs found by a status check, their callback missing",
            "provider",
        )
        self.public_address = self._gauge(
            "broker_public_address", "1 if the last probe of the public URL was verified", "source"
        )
        self.address_changes = self._counter(
            "broker_public_address_changes", "Public URLs found, changed or lost", "change"
        )

    def _declare_results(self) -> None:
        self.downloads = self._counter("broker_downloads", "Downloads of results, by outcome", "outcome")
        self.download_retries = self._counter("broker_download_retries", "Repeated downloads of results")
        self.download_bytes = self._counter("broker_download_bytes", "Bytes of results downloaded")
        self.download_seconds = self._histogram(
            "broker_download_seconds", "Time to download and store one result", PROVIDER_BUCKETS
        )
        self.duplicate_results = self._counter(
            "broker_duplicate_results", "Second results of one order, paid twice", "provider"
        )
        self.thumbnails = self._counter("broker_thumbnails", "Thumbnails rendered on request, by outcome", "outcome")

    def _declare_deliveries(self) -> None:
        self.deliveries = self._counter(
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
        self.steps_failed = self._counter("broker_steps_failed", "Steps that ended in an unexpected error", "step")
        self.database_seconds = self._histogram(
            "broker_database_seconds", "Time of a database operation of the worker", LOCAL_BUCKETS, "operation"
        )
        self.loop_lag = self._histogram(
            "broker_event_loop_lag_seconds", "Delay of the event loop, measured once a second", LOCAL_BUCKETS
        )
        self.build = Info("broker_build", "Versions of the broker and of Python", registry=self.registry)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(name, text, labels, registry=self.registry)
        _keep_children(counter)
        return counter

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        histogram = Histogram(name, text, labels, buckets=buckets, registry=self.registry)
        _keep_children(histogram)
        return histogram


def _keep_children(metric: MetricWrapperBase) -> None:
    """Keep the children of a metric by their labels as they are passed: to find one takes as long as to count."""
    vars(metric)["labels"] = cache(metric.labels)
