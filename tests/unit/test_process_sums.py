"""Metrics of several processes as one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from broker.monitoring.process_sums import Report, SummedRegistry, add_reports, make_report
from broker.server.processes.metrics_hub import MetricsHub


def registry(count: int, seconds: float, tasks: int) -> CollectorRegistry:
    """Return the metrics of one process."""
    found = CollectorRegistry()
    Counter("orders", "Orders", ["code"], registry=found).labels("ok").inc(count)
    Histogram("wait_seconds", "Wait", buckets=(1, 2), registry=found).observe(seconds)
    Gauge("broker_steps_running", "Steps", registry=found).set(count)
    Gauge("tasks", "Tasks in the database", registry=found).set(tasks)
    return found


def value(sums: Report, sample: str) -> float | None:
    """Return the first value of a sample."""
    found = [value for *_, samples in sums for name, _, value in samples if name == sample]
    return found[0] if found else None


def test_sums_replace_what_is_added_up_and_keep_the_rest() -> None:
    own, other = registry(2, 0.5, tasks=9), registry(3, 1.5, tasks=9)
    sums = add_reports([make_report(own), make_report(other)])
    page = generate_latest(SummedRegistry(own, sums)).decode()
    for line in (
        'orders_total{code="ok"} 5.0',
        'wait_seconds_bucket{le="1.0"} 1.0',
        'wait_seconds_bucket{le="2.0"} 2.0',
        "wait_seconds_count 2.0",
        "wait_seconds_sum 2.0",
        "broker_steps_running 5.0",
        "tasks 9.0",
    ):
        assert f"\n{line}\n" in page


def test_counter_of_sums_began_when_the_first_process_began_it() -> None:
    reports = [make_report(registry(1, 1, 0)) for _ in range(2)]
    began = [value(report, "orders_created") for report in reports]
    assert value(add_reports(reports), "orders_created") == min(filter(None, began))


class Asked:
    """A hub with the requests that it sent, and its answers by process."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.answers: dict[int, Report] = {}
        self.hub = MetricsHub(ask=self.requests.append, answer=self.answers.__setitem__)
        for number in (1, 2):
            self.hub.begin(number)


def test_hub_answers_when_all_have_reported() -> None:
    asked = Asked()
    asked.hub.request(1)
    asked.hub.request(2)
    assert asked.requests == [1, 2]
    asked.hub.store(1, make_report(registry(2, 1, 0)))
    assert not asked.answers
    asked.hub.store(2, make_report(registry(3, 1, 0)))
    assert {number: value(sums, "orders_total") for number, sums in asked.answers.items()} == {1: 5, 2: 5}
    assert asked.hub.due_at is None


def test_hub_does_not_wait_for_a_process_that_is_silent() -> None:
    asked = Asked()
    asked.hub.store(2, make_report(registry(3, 1, 0)))
    asked.hub.request(1)
    asked.hub.store(1, make_report(registry(2, 1, 0)))
    assert asked.hub.due_at is not None
    asked.hub.finish_if_due(asked.hub.due_at)
    assert value(asked.answers[1], "orders_total") == 5  # with its last report


def test_counts_of_an_ended_process_remain_and_its_gauges_go() -> None:
    asked = Asked()
    asked.hub.store(2, make_report(registry(3, 1, 0)))
    asked.hub.request(1)
    asked.hub.end(2)
    asked.hub.store(1, make_report(registry(2, 1, 0)))
    assert value(asked.answers[1], "orders_total") == 5
    assert value(asked.answers[1], "broker_steps_running") == 2
