"""Groups of writes as plain values, which are passed to the writer of a SQLite file and back, between processes too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

PlainStatement: TypeAlias = tuple[str, Mapping[str, Any], bool, bool, tuple[Any, ...]]
"""A `Statement`, or its fields in their order."""
Write: TypeAlias = Sequence[PlainStatement]
"""One transaction."""
Group: TypeAlias = Sequence[Write]

PlainOutcome: TypeAlias = int | tuple[tuple[str, ...], list[tuple[Any, ...]]]
"""The number of changed rows; or the names and values of the rows that the statement returned."""
Result: TypeAlias = list[PlainOutcome] | Exception
"""Of one write."""


class Report(NamedTuple):
    """Report of the writer.

    results: one for each write of the group; empty if this is not the report of a group. changed: ids of rows that
    were changed since the last report. is_foreign: another process has committed since then. is_free: the writer waits
    for a group.
    """

    results: Sequence[Result]
    changed: Collection[str]
    is_foreign: bool
    is_free: bool
