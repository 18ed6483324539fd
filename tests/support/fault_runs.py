"""Fault runs: `python -m tests.support.fault_runs` runs every fault family at full length and prints a table.

A family is the set of tests behind one promise. `make test` runs a few of each; here those marked `faults` run too.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Tests of one promise. files: below tests/, or patterns of them."""

    promise: str
    files: tuple[str, ...]

    @property
    def paths(self) -> list[Path]:
        return [path for pattern in self.files for path in sorted(TESTS.glob(pattern))]


FAMILIES = (
    Family(
        promise="kill -9 at any step: the task ends as it should, submitted once", files=("processes/test_kill.py",)
    ),
    Family(
        promise="a crash before or after any commit costs time only", files=("integration/faults/test_every_commit.py",)
    ),
    Family(
        promise="SIGTERM under load: requests on new and busy connections are answered",
        files=("integration/faults/test_stops.py",),
    ),
    Family(promise="a cut line or a dead Postgres costs time only", files=("integration/faults/test_postgres.py",)),
    Family(promise="a pooler in transaction mode changes nothing", files=("integration/faults/test_pgbouncer.py",)),
    Family(
        promise="failover over three providers bills an order once at most",
        files=("integration/faults/test_failover.py",),
    ),
    Family(
        promise="a budget is kept whatever providers report, and each reservation is settled once",
        files=("integration/faults/test_budget.py",),
    ),
    Family(
        promise="a quota is filled exactly, in whichever process and whatever is killed",
        files=("processes/test_quotas.py",),
    ),
    Family(promise="no byte of a signed callback can be changed", files=("unit/webhooks/test_ed25519_lines.py",)),
    Family(
        promise="an order whose answer is the image ends with image, code or unknown outcome, and is made once",
        files=("journeys/test_held_providers.py", "integration/faults/test_held_calls.py"),
    ),
    Family(promise="a late worker does no harm after a takeover", files=("integration/faults/test_takeover.py",)),
    Family(
        promise="downloads, retention and sweep in any order: no image lost, no file left",
        files=("integration/faults/test_interleavings.py",),
    ),
    Family(promise="processes killed under load: every order ends once", files=("processes/test_cluster.py",)),
    Family(promise="a full disk costs no paid image, killed or not", files=("processes/test_full_disk.py",)),
    Family(promise="a faulty bucket: results whole, submitted once", files=("integration/faults/test_s3_journeys.py",)),
    Family(promise="every behaviour of the provider has its end", files=("journeys/test_moods.py",)),
    Family(
        promise="no download leaves its limits or the public network", files=("integration/faults/test_egress_*.py",)
    ),
    Family(
        promise="memory does not grow with the images",
        files=("processes/test_memory.py", "integration/uploads/test_decoder.py"),
    ),
    Family(
        promise="any bytes are rejected, or an image that decodes whole",
        files=("integration/uploads/test_any_bytes.py",),
    ),
    Family(
        promise="a failing receiver gets each webhook, or its last retry",
        files=("integration/faults/test_deliveries.py",),
    ),
    Family(promise="polls are answered while peers send tiny pieces", files=("processes/test_hostile.py",)),
    Family(promise="the worker outlives its own errors", files=("integration/faults/test_worker.py",)),
)


@dataclass
class Table:
    """A pytest plugin that counts the outcomes of each family."""

    runs: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.split("::")[0]
        self.runs[name] += report.when == "call"
        self.skipped[name] += report.skipped
        self.violations[name] += report.failed

    def print_rows(self, seconds: float) -> None:
        width = max(len(family.promise) for family in FAMILIES)
        lines = [f"{'promise':<{width}}  runs  violations  skipped"]
        for family in FAMILIES:
            names = [str(path.relative_to(TESTS.parent)) for path in family.paths]
            runs, violations, skipped = (
                sum(counter[name] for name in names) for counter in (self.runs, self.violations, self.skipped)
            )
            lines.append(f"{family.promise:<{width}}  {runs:4}  {violations:10}  {skipped:7}")
        lines.append(f"{self.runs.total()} runs, {self.violations.total()} violations, {seconds:.0f} s")
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


def main() -> int:
    table, begun = Table(), time.monotonic()
    paths = [str(path) for family in FAMILIES for path in family.paths]
    code = pytest.main(["-m", "", "-n", "2", "--dist", "loadfile", *sys.argv[1:], *paths], plugins=[table])
    table.print_rows(time.monotonic() - begun)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
