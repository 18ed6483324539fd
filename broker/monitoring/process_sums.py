"""Metrics of several processes as one: what is added up, and what only one process reports.

Counters and histograms are added up. Gauges read from the database are the same in every process, so only those of the
process that is asked are shown.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

Report = Sequence[Any]
"""Families as JSON: `[[name, help, type, [[sample name, labels, value], …]], …]`."""
ReadSums = Callable[[], Awaitable[Report | None]]
"""Returns the sums over all processes of a machine; None if they cannot be had."""

_CUMULATIVE: Final = frozenset({"counter", "histogram"})
_SUMMED_GAUGES: Final = frozenset(
    {
        "broker_steps_running",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_open_fds",
    }
)
_CREATED: Final = "_created"
"""Ending of samples that tell when a counter began."""


def make_report(registry: CollectorRegistry) -> Report:
    """Return the families of a process that are added up."""
    return [
        [
            family.name,
            family.documentation,
            family.type,
            [[sample.name, sample.labels, sample.value] for sample in family.samples],
        ]
        for family in registry.collect()
        if family.type in _CUMULATIVE or family.name in _SUMMED_GAUGES
    ]


def keep_cumulative(report: Report) -> Report:
    """Return what remains of the report of a process that has ended: without its counts a sum would fall."""
    return [family for family in report if family[2] in _CUMULATIVE]


def add_reports(reports: Iterable[Report]) -> Report:
    """Return the sum of reports. A counter began when the first process began it."""
    families: dict[str, tuple[str, str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
    for report in reports:
        for name, text, kind, samples in report:
            _, _, values = families.setdefault(name, (text, kind, {}))
            for sample, labels, value in samples:
                key = sample, tuple(labels.items())
                if key not in values:
                    values[key] = value
                elif sample.endswith(_CREATED):
                    values[key] = min(values[key], value)
                else:
                    values[key] += value
    return [
        [name, text, kind, [[sample, dict(labels), value] for (sample, labels), value in values.items()]]
        for name, (text, kind, values) in families.items()
    ]


class SummedRegistry:
    """The metrics of this process, with sums in place of the families that are added up."""

    def __init__(self, registry: CollectorRegistry, sums: Report) -> None:
        self._registry = registry
        self._sums = {family[0]: family for family in sums}

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        for family in self._registry.collect():
            yield family if family.name not in self._sums else _to_metric(*self._sums[family.name])


def _to_metric(name: str, text: str, kind: str, samples: Iterable[tuple[str, dict[str, str], float]]) -> Metric:
    metric = Metric(name, text, kind)
    for sample, labels, value in samples:
        metric.add_sample(sample, labels, value)
    return metric
