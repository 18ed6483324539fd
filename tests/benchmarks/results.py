"""Rows of the benchmark's table: what was measured, the goal, and whether it was met. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal

MAX_SPREAD: Final = 0.35
"""(max - min) / median of the calibration, or of the reference, above which a row is not judged."""
MAX_OTHER_LOAD: Final = 0.25
"""Share of the processors that other programs use before a path begins, above which it is not judged."""
HEAD: Final = ("path", "reference", "ours", "ratio", "goal", "met")
BEGIN_MARK: Final = "<!-- benchmark: begin -->"
END_MARK: Final = "<!-- benchmark: end -->"

Verdict = Literal["met", "not met", "noisy", "not measured", "–"]


def spread(values: Sequence[float]) -> float:
    """Return (max - min) / median; 0 for fewer than two values."""
    middle = median(values) if values else 0.0
    return (max(values) - min(values)) / middle if len(values) > 1 and middle else 0.0


def number(value: float) -> str:
    """Return three significant digits, thousands apart."""
    if abs(value) >= 1000:
        return f"{round(value):,}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def with_unit(value: float, unit: str) -> str:
    return f"{number(value)}{'' if unit.startswith('/') else ' '}{unit}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One side of a row: a value per round. cpu: the subject's CPU seconds per operation, per round."""

    values: tuple[float, ...]
    unit: str
    name: str = ""
    cpu: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return median(self.values)

    def __str__(self) -> str:
        parts = [f"{self.name} " if self.name else "", with_unit(self.median, self.unit)]
        if len(self.values) > 1:
            parts.append(f" ({number(min(self.values))} – {number(max(self.values))})")
        if self.cpu:
            parts.append(f"; {number(median(self.cpu) * 1e6)} µs CPU")
        return "".join(parts)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound on the ratio to the reference, or on our own value."""

    of: Literal["ratio", "value"] = "ratio"
    at_least: bool
    bound: float

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def text(self, unit: str) -> str:
        bound = f"{self.bound:.3g} ×" if self.of == "ratio" else with_unit(self.bound, unit)
        return f"{'≥' if self.at_least else '≤'} {bound}"


def ratio_at_least(bound: float) -> Goal:
    return Goal(at_least=True, bound=bound)


def ratio_at_most(bound: float) -> Goal:
    return Goal(at_least=False, bound=bound)


def value_at_least(bound: float) -> Goal:
    return Goal(of="value", at_least=True, bound=bound)


def value_at_most(bound: float) -> Goal:
    return Goal(of="value", at_least=False, bound=bound)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row. ours: None where it could not be measured; `note` then says why.

    on_disk: durable writes are part of it, so the calibration of the disk counts, too. is_timed: False for sizes and
    counts, which a busy machine does not change.
    cpu_spread, disk_spread: of the calibration between the rounds. other_load: before the path began.
    """

    path: str
    what: str
    ours: Measured | None
    reference: Measured | None = None
    goal: Goal | None = None
    note: str = ""
    on_disk: bool = False
    is_timed: bool = True
    cpu_spread: float = 0.0
    disk_spread: float = 0.0
    other_load: float = 0.0

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return ours / reference: of each round if both have as many, else of the medians."""
        if self.ours is None or self.reference is None:
            return ()
        ours, theirs = self.ours.values, self.reference.values
        if len(ours) != len(theirs):
            ours, theirs = (self.ours.median,), (self.reference.median,)
        return tuple(mine / other for mine, other in zip(ours, theirs, strict=True) if other)

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def noise(self) -> float:
        """Return the largest spread of what should not vary."""
        reference = spread(self.reference.values) if self.reference else 0.0
        return max(reference, self.cpu_spread, self.disk_spread if self.on_disk else 0.0)

    @property
    def verdict(self) -> Verdict:
        if self.ours is None:
            return "not measured"
        judged = None if self.goal is None else self.ratio if self.goal.of == "ratio" else self.ours.median
        if self.goal is None or judged is None:
            return "–"
        if self.is_timed and (self.noise > MAX_SPREAD or self.other_load > MAX_OTHER_LOAD):
            return "noisy"
        return "met" if self.goal.is_met(judged) else "not met"

    def cells(self) -> tuple[str, ...]:
        ratio, unit = self.ratio, self.ours.unit if self.ours else ""
        return (
            f"{self.path} {self.what}",
            str(self.reference or "–"),
            str(self.ours or "–"),
            "–" if ratio is None else f"{ratio:.2f}",
            self.goal.text(unit) if self.goal else "–",
            self.verdict,
        )

    def document(self) -> dict[str, Any]:
        def side(measured: Measured | None) -> dict[str, Any] | None:
            if measured is None:
                return None
            return {
                "name": measured.name,
                "unit": measured.unit,
                "median": measured.median,
                "values": measured.values,
                "cpu_seconds_per_operation": measured.cpu,
            }

        return {
            "path": self.path,
            "what": self.what,
            "reference": side(self.reference),
            "ours": side(self.ours),
            "ratio": self.ratio,
            "ratios": self.ratios,
            "goal": self.goal and {"of": self.goal.of, "at_least": self.goal.at_least, "bound": self.goal.bound},
            "met": self.verdict,
            "noise": self.noise,
            "other_load": self.other_load,
            "note": self.note,
        }


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def report(rows: Sequence[Row], machine: Sequence[str]) -> str:
    """Return the table, the notes and what was said about the machine, in Markdown."""
    notes = [f"- {row.path} {row.what}: {row.note}" for row in rows if row.note]
    bound = (
        f"- noisy, so the row is not judged: the calibration or the reference varied by more than {MAX_SPREAD:.0%} "
        f"(max - min, of the median), or other programs used more than {MAX_OTHER_LOAD:.0%} of the processors before"
    )
    said = [*(f"- {line}" for line in machine), bound]
    return "\n".join([markdown_table(HEAD, (row.cells() for row in rows)), "", *notes, *said])


def as_json(rows: Sequence[Row], machine: Sequence[str]) -> str:
    document = {"machine": list(machine), "rows": [row.document() for row in rows]}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def insert_between_marks(text: str, table: str) -> str:
    """Return the text with the table in the place of what is between the two marks. Raises ValueError without them."""
    before, begin, rest = text.partition(BEGIN_MARK)
    _, end, after = rest.partition(END_MARK)
    if not begin or not end:
        raise ValueError(f"the file has no place for the table: {BEGIN_MARK} and {END_MARK}")
    return f"{before}{begin}\n{table}\n{end}{after}"
