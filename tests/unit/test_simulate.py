"""The simulation keeps the laws that any queue keeps, and those of the provider; that it is like the real thing is
measured by `python -m tests.benchmarks.simulation`."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import Any

import pytest

from scripts.simulate import WINDOW_SECONDS, Plant, Simulation

BUSY = Plant(orders=7_200, hours=0.1, creates=18, places=60, lost=10)
"""More orders than the window takes, so that there is a queue."""


def test_every_order_ends_after_it_was_sent_and_is_sent_after_it_came() -> None:
    simulated = Simulation(BUSY).run()
    assert len(simulated.lane.sent) == len(simulated.stories) == len(simulated.orders) > 500
    assert all(s.order.arrives_at < s.queued_at <= s.sent_at < s.ended_at for s in simulated.stories)
    assert simulated.lane.under_way.value == simulated.lane.queue.value == 0


def test_as_many_wait_as_come_in_the_time_that_each_waits() -> None:
    """Little's law: both sides are counted apart."""
    simulated = Simulation(BUSY).run()
    assert simulated.lane.queue.area == pytest.approx(sum(simulated.waits), rel=1e-6)
    assert simulated.lane.queue.area > 0


def test_the_window_and_the_places_are_never_exceeded() -> None:
    simulated = Simulation(BUSY).run()
    sent = simulated.lane.sent
    assert all(late >= early + WINDOW_SECONDS for early, late in zip(sent, sent[BUSY.creates :], strict=False))
    assert simulated.lane.under_way.peak <= BUSY.places


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert Simulation(BUSY).run().told() == Simulation(BUSY).run().told()
    assert Simulation(replace(BUSY, seed=2)).run().told() != Simulation(BUSY).run().told()


@pytest.mark.parametrize("what", ["creates", "places", "processes", "commits", "network", "downloads"])
def test_more_of_anything_never_makes_it_worse(what: str) -> None:
    tight = replace(BUSY, commits=16.0, cpu_ms=400.0, network=4.5, download_seconds=9.0)
    more = replace(tight, **{what: getattr(tight, what) * 2})
    assert mean(Simulation(more).run().lives) <= mean(Simulation(tight).run().lives) * 1.001


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"creates": 15}, "provider's window"),
        ({"places": 30, "creates": 100}, "provider's places"),
        ({"commits": 10.0, "creates": 100, "places": 1000}, "database"),
        ({"cpu_ms": 600.0, "creates": 100, "places": 1000}, "processes"),
        ({"network": 3.0, "creates": 100, "places": 1000}, "network"),
        ({"download_seconds": 30.0, "creates": 100, "places": 1000}, "downloads"),
    ],
)
def test_it_names_what_is_short(change: dict[str, Any], first: str) -> None:
    assert f"| first at its limit | {first} |" in Simulation(replace(BUSY, **change)).run().told()


def test_a_lost_callback_costs_the_time_until_the_provider_is_asked() -> None:
    plant = Plant(orders=100, provider_seconds=10.0, lost=100.0, download_seconds=0.0)
    assert min(Simulation(plant).run().lives) >= plant.check_after
    assert max(Simulation(plant).run().lives) < plant.check_after + 1


def test_simulation_without_orders_says_so() -> None:
    assert "no order came" in Simulation(Plant(), orders=[]).run().told()
