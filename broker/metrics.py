"""What is counted: a metric per arrow of the state drawing, labels from closed sets only.

docs/operating.md says what each of them means and when to worry; a test keeps both alike.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

MOMENTS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds of what takes milliseconds when all is well."""
WAITS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 7200.0)
"""Seconds of what takes as long as providers take."""


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.transitions = Counter(
            "broker_task_transitions",
            "Tasks that went from one state to another",
            ["from", "to"],
            registry=self.registry,
        )
        self.checks = Counter(
            "broker_provider_checks",
            "Times a provider was asked about a job",
            ["provider", "answer"],
            registry=self.registry,
        )
        self.steps_failed = Counter(
            "broker_steps_failed", "Steps that ended in an unexpected error", ["step"], registry=self.registry
        )
        self.refusals = Counter("broker_refusals", "Requests refused, by code", ["code"], registry=self.registry)
        self.requests = Counter(
            "broker_http_requests",
            "HTTP requests by operation and status",
            ["operation", "status"],
            registry=self.registry,
        )
        self.tasks = Gauge("broker_tasks", "Tasks by state", ["state"], registry=self.registry)
        self._of_callbacks()
        self._of_images()
        self._of_the_address()
        self._of_deliveries()
        self._of_tasks()
        self._of_providers()
        self._of_results()
        self._of_this_process()

    def page(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)

    def _of_callbacks(self) -> None:
        self.callbacks = Counter(
            "broker_callbacks",
            "Callbacks received, by what they proved",
            ["provider", "verification"],
            registry=self.registry,
        )
        self.callback_seconds = Histogram(
            "broker_callback_seconds",
            "From the first byte of a callback to its acknowledgement",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
            registry=self.registry,
        )
        self.callback_lag = Histogram(
            "broker_callback_lag_seconds",
            "From the end of a job, by the provider's clock, to the believed callback about it",
            ["provider"],
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600),
            registry=self.registry,
        )
        self.callbacks_missing = Counter(
            "broker_callbacks_missing",
            "Jobs whose end was learned by asking, because the callback that was expected had not come",
            ["provider"],
            registry=self.registry,
        )

    def _of_images(self) -> None:
        self.downloads = Counter(
            "broker_downloads", "Downloads of results, by outcome", ["outcome"], registry=self.registry
        )
        self.thumbnails = Counter(
            "broker_thumbnails", "Thumbnails that were asked for and not there", ["outcome"], registry=self.registry
        )
        self.duplicate_results = Counter(
            "broker_duplicate_results",
            "Second results of one order, paid twice",
            ["provider"],
            registry=self.registry,
        )

    def _of_the_address(self) -> None:
        self.public_address = Gauge(
            "broker_public_address",
            "1 where the last try to reach ourselves at our public address came through",
            ["source"],
            registry=self.registry,
        )
        self.address_changes = Counter(
            "broker_public_address_changes", "Public addresses found, changed, lost", ["what"], registry=self.registry
        )

    def _of_deliveries(self) -> None:
        self.deliveries = Counter(
            "broker_deliveries",
            "Attempts to deliver a webhook, by outcome",
            ["type", "outcome"],
            registry=self.registry,
        )
        self.delivery_seconds = Histogram(
            "broker_delivery_seconds",
            "From the end of a task to the caller's response to its webhook",
            buckets=(0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 1800.0, 7200.0, 36000.0, 144000.0),
            registry=self.registry,
        )
        self.deliveries_pending = Gauge(
            "broker_deliveries_pending", "Webhooks not delivered yet", registry=self.registry
        )

    def _of_tasks(self) -> None:
        self.state_seconds = self._histogram("broker_state_seconds", "Time a task spent in a state", WAITS, "state")
        self.queue_seconds = self._histogram(
            "broker_queue_seconds", "From the order's acceptance to its first submission", WAITS, "provider"
        )
        self.task_seconds = self._histogram(
            "broker_task_seconds", "From the order to the first end that its caller saw", WAITS, "model", "outcome"
        )
        self.task_attempts = self._histogram("broker_task_attempts", "Submissions per ended task", (0, 1, 2, 3, 5))
        self.late_results = self._counter(
            "broker_late_results", "Images that arrived after their task was shown as failed", "model"
        )

    def _of_providers(self) -> None:
        self.submissions = self._counter(
            "broker_submissions", "Orders submitted to a provider, by outcome", "provider", "outcome"
        )
        self.submission_seconds = self._histogram(
            "broker_submission_seconds", "Time a provider took to answer an order", WAITS, "provider"
        )
        self.unknown_outcomes = self._counter(
            "broker_unknown_outcomes", "Attempts whose outcome and cost stayed unknown", "provider"
        )
        self.unclassified_errors = self._counter(
            "broker_unclassified_errors", "Provider errors that its error table does not contain", "provider"
        )
        self.provider_cooldown = self._gauge(
            "broker_provider_cooldown_seconds", "Time until the next submission to a provider", "provider"
        )
        self.credits_left = self._gauge(
            "broker_provider_credits", "Balance of a provider's account, in its unit", "provider"
        )

    def _of_results(self) -> None:
        self.download_retries = self._counter("broker_download_retries", "Downloads of results after the first try")
        self.download_bytes = self._counter("broker_download_bytes", "Bytes of results downloaded")
        self.download_seconds = self._histogram(
            "broker_download_seconds", "Time to download and store one result", WAITS
        )

    def _of_this_process(self) -> None:
        self.steps_running = self._gauge("broker_steps_running", "Steps in progress in this process")
        self.database_seconds = self._histogram(
            "broker_database_seconds",
            "Time of the database for a poll of a worker, and for a change",
            MOMENTS,
            "operation",
        )
        self.loop_lag = self._histogram(
            "broker_event_loop_lag_seconds", "How late the event loop was, asked once a second", MOMENTS
        )
        self.build = Info("broker_build", "What runs here", registry=self.registry)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
