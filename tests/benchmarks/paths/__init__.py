"""One module per path of docs/performance.md; each returns the rows of its table."""

from __future__ import annotations

from typing import Final

from tests.benchmarks.command import Paths
from tests.benchmarks.paths import (
    hostile_traffic,
    p01_poll,
    p02_not_modified,
    p03_create,
    p04_callbacks,
    p05_latency,
    p06_downloads,
    p07_lives,
    p08_idle,
    p09_in_flight,
    p10_retention,
    p11_postgres,
    p12_images,
    p13_waiters,
    p14_engine,
    p15_growth,
)

PATHS: Final[Paths] = {
    "P1": p01_poll.measure,
    "P2": p02_not_modified.measure,
    "P3": p03_create.measure,
    "P4": p04_callbacks.measure,
    "P5": p05_latency.measure,
    "P6": p06_downloads.measure,
    "P7": p07_lives.measure,
    "P8": p08_idle.measure,
    "P9": p09_in_flight.measure,
    "P10": p10_retention.measure,
    "P11": p11_postgres.measure,
    "P12": p12_images.measure,
    "P13": p13_waiters.measure,
    "P14": p14_engine.measure,
    "P15": p15_growth.measure,
    "hostile": hostile_traffic.measure_all,
}
"""By name, in the order of the table."""
