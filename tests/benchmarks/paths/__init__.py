"""One module per path of docs/performance.md; each returns the rows of its table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tests.benchmarks.paths import p01_poll, p02_not_modified, p03_create, p04_callbacks, p07_lives
from tests.benchmarks.results import Row
from tests.benchmarks.support.bench import Bench

PATHS: Final[Mapping[str, Callable[[Bench], Awaitable[list[Row]]]]] = {
    "P1": p01_poll.measure,
    "P2": p02_not_modified.measure,
    "P3": p03_create.measure,
    "P4": p04_callbacks.measure,
    "P7": p07_lives.measure,
}
"""By name, in the order of the table."""
