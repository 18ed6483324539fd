"""Laws of queues and limits of the provider in the simulation.

`python -m tests.benchmarks.engines.simulation` compares it with the real system.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import Any

import pytest

from scripts.simulate import WINDOW_SECONDS, Deployment, Simulation

BUSY = Deployment(orders=7_200, hours=0.1, creates=18, concurrency=60, lost=10)
"""More orders than the window admits, so that there is a queue."""


def test_every_order_is_queued_sent_and_ended_in_this_order() -> None:
    simulated = Simulation(BUSY).run()
    assert len(simulated.limits.sent) == len(simulated.timelines) == len(simulated.orders) > 500
    assert all(s.order.arrives_at < s.queued_at <= s.sent_at < s.ended_at for s in simulated.timelines)
    assert simulated.limits.running.value == simulated.limits.queue.value == 0


def test_queue_follows_littles_law() -> None:
    """Both sides are computed independently."""
    simulated = Simulation(BUSY).run()
    assert simulated.limits.queue.area == pytest.approx(sum(simulated.waits), rel=1e-6)
    assert simulated.limits.queue.area > 0


def test_window_and_concurrency_are_never_exceeded() -> None:
    simulated = Simulation(BUSY).run()
    sent = simulated.limits.sent
    assert all(late >= early + WINDOW_SECONDS for early, late in zip(sent, sent[BUSY.creates :], strict=False))
    assert simulated.limits.running.peak <= BUSY.concurrency


def test_equal_seeds_give_equal_results() -> None:
    assert Simulation(BUSY).run().report() == Simulation(BUSY).run().report()
    assert Simulation(replace(BUSY, seed=2)).run().report() != Simulation(BUSY).run().report()


@pytest.mark.parametrize("what", ["creates", "concurrency", "processes", "commits", "network", "downloads"])
def test_more_capacity_never_makes_it_slower(what: str) -> None:
    tight = replace(BUSY, commits=16.0, cpu_ms=400.0, network=4.5, download_seconds=9.0)
    more = replace(tight, **{what: getattr(tight, what) * 2})
    assert mean(Simulation(more).run().durations) <= mean(Simulation(tight).run().durations) * 1.001


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"creates": 15}, "provider's window"),
        ({"concurrency": 30, "creates": 100}, "provider's concurrency"),
        ({"commits": 10.0, "creates": 100, "concurrency": 1000}, "database"),
        ({"cpu_ms": 600.0, "creates": 100, "concurrency": 1000}, "processes"),
        ({"network": 3.0, "creates": 100, "concurrency": 1000}, "network"),
        ({"download_seconds": 30.0, "creates": 100, "concurrency": 1000}, "downloads"),
    ],
)
def test_report_names_the_bottleneck(change: dict[str, Any], first: str) -> None:
    assert f"| first at its limit | {first} |" in Simulation(replace(BUSY, **change)).run().report()


def test_lost_callback_delays_the_end_until_the_status_check() -> None:
    deployment = Deployment(orders=100, provider_seconds=10.0, lost=100.0, download_seconds=0.0)
    assert min(Simulation(deployment).run().durations) >= deployment.check_after
    assert max(Simulation(deployment).run().durations) < deployment.check_after + 1


def test_simulation_without_orders() -> None:
    assert "no orders" in Simulation(Deployment(), orders=[]).run().report()
