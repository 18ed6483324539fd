"""The benchmark of all paths: `python -m tests.benchmarks [--long] [--only P1,P7] [--rounds N]`.

Each path starts its reference beside the broker, in the same run. Prints a table, and writes it as JSON; the table can
be put into a document, between two marks.
"""

from __future__ import annotations

import sys

from tests.benchmarks.command import run_command
from tests.benchmarks.paths import PATHS

if __name__ == "__main__":
    sys.exit(run_command("python -m tests.benchmarks", PATHS, "bench.json"))
