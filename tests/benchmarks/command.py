"""The command of the benchmarks: options, the paths one after the other, the table, and the JSON beside it."""

from __future__ import annotations

import argparse
import asyncio
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from anyio import to_thread

from tests.benchmarks.results import Row, as_json, insert_between_marks, report, spread
from tests.benchmarks.support.bench import Bench, Options
from tests.benchmarks.support.machine import facts, other_load
from tests.benchmarks.support.processes import ROOT

BUILD: Final = ROOT / "build"
MAX_FILES: Final = 20_000
"""Open at once: four thousand waiting clients, on both sides."""


Paths = Mapping[str, Callable[[Bench], Awaitable[list[Row]]]]
"""What measures each path, by its name, in the order of the table."""


async def run_paths(bench: Bench, paths: Paths) -> list[Row]:
    """Measure the paths one after the other. A path that fails has a row that says so."""
    rows: list[Row] = []
    for name, measure in paths.items():
        began = time.monotonic()
        bench.calibration.start_anew()
        others = await to_thread.run_sync(other_load)
        try:
            measured = await measure(bench)
        except Exception as error:  # the other paths go on
            traceback.print_exc()
            measured = [Row(path=name, what="failed", ours=None, note=f"{type(error).__name__}: {error}"[:300])]
        cpu, disk = spread(bench.calibration.cpu), spread(bench.calibration.disk)
        rows += [replace(row, cpu_spread=cpu, disk_spread=disk, other_load=others) for row in measured]
        _say(f"{name}: {time.monotonic() - began:.0f} s")
    return rows


async def main(options: Options, paths: Paths, json_file: Path, markdown: Path | None) -> int:
    """Return the exit code: 1 if a path failed. A goal that is not met is no failure."""
    began = time.monotonic()
    BUILD.mkdir(exist_ok=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))
    root = Path(tempfile.mkdtemp(prefix="bench-", dir=BUILD))
    try:
        bench = Bench(options=options, root=root)
        rows = await run_paths(bench, paths)
        machine = [*facts(root), _sizes(options), f"duration: {time.monotonic() - began:.0f} s"]
    finally:
        shutil.rmtree(root, ignore_errors=True)
    table = report(rows, machine)
    sys.stdout.write(f"\n{table}\n\n")
    _write(json_file, as_json(rows, machine))
    if markdown is not None:
        _insert(markdown, table)
    return int(any(row.what == "failed" for row in rows))


def _sizes(options: Options) -> str:
    form = "long" if options.is_long else "short"
    return f"{form} form, {options.rounds} rounds of {options.seconds:g} s: median (min – max)"


def _write(file: Path, text: str) -> None:
    file.write_text(text, "utf-8")


def _insert(document: Path, table: str) -> None:
    _write(document, insert_between_marks(document.read_text("utf-8"), table))


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def run_command(program: str, paths: Paths, json_name: str) -> int:
    """Parse the options of the command and measure; return the exit code."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--only", default=",".join(paths), help=f"of {', '.join(paths)}; separated by commas")
    parser.add_argument("--long", action="store_true", help="all sizes as in the goals; takes an hour")
    parser.add_argument("--rounds", type=int, help="3; in the long form 5")
    parser.add_argument("--seconds", type=float, help="of each measurement: 0.7; in the long form 4")
    parser.add_argument("--json", type=Path, default=BUILD / json_name)
    parser.add_argument("--markdown", type=Path, help="document that gets the table, between its two marks")
    chosen = parser.parse_args()
    wanted = chosen.only.split(",")
    if unknown := set(wanted) - set(paths):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    sizes = Options(
        rounds=chosen.rounds or (5 if chosen.long else 3),
        seconds=chosen.seconds or (4.0 if chosen.long else 0.7),
        is_long=chosen.long,
    )
    selected = {name: measure for name, measure in paths.items() if name in wanted}
    return asyncio.run(main(sizes, selected, chosen.json, chosen.markdown))
