"""The metrics page looks as if the library's own counters and histograms had counted."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from broker.metrics import CALLBACK_BUCKETS, PROVIDER_BUCKETS, Metrics

SECONDS = (0.0, 0.001, 0.0010001, 0.1, 0.25, 7.0, 1800.0, 7200.0, 9999.5)


def families_of(registry: CollectorRegistry) -> dict[str, Any]:
    """Return what the page is made of, by name; without the times at which counting began, which differ."""
    return {
        family.name: [
            (family.documentation, family.type, family.unit),
            [s._replace(value=0.0 if s.name.endswith("_created") else s.value) for s in family.samples],
        ]
        for family in registry.collect()
    }


def test_families_equal_those_of_the_librarys_own_classes() -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    text = "State changes of tasks"
    transitions = Counter("broker_task_transitions", text, ["from", "to"], registry=registry)
    retries = Counter("broker_download_retries", "Repeated downloads of results", registry=registry)
    text = "Time that a task spent in a state"
    durations = Histogram("broker_state_seconds", text, ["state"], buckets=PROVIDER_BUCKETS, registry=registry)
    text = "Time from the first byte of a callback to its acknowledgement"
    delays = Histogram("broker_callback_ack_seconds", text, buckets=CALLBACK_BUCKETS, registry=registry)
    for counter in (transitions, metrics.transitions):
        counter.labels("waiting", "fetching").inc()
        counter.labels("queued", 'a"\\\n').inc(3)
    for counted in (retries, metrics.download_retries):
        counted.inc(2.5)
    for value in SECONDS:
        for histogram in (durations, metrics.state_seconds):
            histogram.labels("waiting").observe(value)
            histogram.labels("fetching").observe(value)
        for observed in (delays, metrics.callback_ack_seconds):
            observed.observe(value)
    expected = families_of(registry)
    assert {name: family for name, family in families_of(metrics.registry).items() if name in expected} == expected
    sample = metrics.registry.get_sample_value
    assert sample("broker_task_transitions_total", {"from": "waiting", "to": "fetching"}) == 1.0


def test_wrong_number_of_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match="has the labels from, to"):
        Metrics().transitions.labels("queued")
