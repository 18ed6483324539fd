"""What is counted: a metric per arrow of the state drawing, labels from closed sets only."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.transitions = Counter(
            "broker_task_transitions",
            "Tasks that went from one state to another",
            ["was", "now"],
            registry=self.registry,
        )
        self.callbacks = Counter(
            "broker_callbacks",
            "Callbacks received, by what they proved",
            ["provider", "verdict"],
            registry=self.registry,
        )
        self.callback_seconds = Histogram(
            "broker_callback_seconds",
            "From the first byte of a callback to its acknowledgement",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
            registry=self.registry,
        )
        self.checks = Counter(
            "broker_provider_checks",
            "Times a provider was asked about a job",
            ["provider", "answer"],
            registry=self.registry,
        )
        self.downloads = Counter(
            "broker_downloads", "Tries to bring a result home, by outcome", ["outcome"], registry=self.registry
        )
        self.shared_results = Counter(
            "broker_shared_results",
            "Results whose bytes were here already, as those of another task",
            registry=self.registry,
        )
        self.thumbnails = Counter(
            "broker_thumbnails", "Thumbnails that were asked for and not there", ["outcome"], registry=self.registry
        )
        self.spares = Counter(
            "broker_spare_results",
            "Second results for one order: somebody paid twice",
            ["provider"],
            registry=self.registry,
        )
        self.steps_failed = Counter(
            "broker_steps_failed", "Steps that ended in an error nobody foresaw", ["step"], registry=self.registry
        )
        self.refusals = Counter("broker_refusals", "Requests refused, by code", ["code"], registry=self.registry)
        self.tasks = Gauge("broker_tasks", "Tasks by state", ["state"], registry=self.registry)

    def page(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
