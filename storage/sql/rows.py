"""Helpers between rows and dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

from storage.sql.database import Row

T = TypeVar("T")


def in_clause(values: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return `:v0, :v1, …` for `IN (…)`, and the parameters; for some hundred values at most."""
    params = {f"v{number}": value for number, value in enumerate(values)}
    return ", ".join(f":{name}" for name in params), params


def from_row(kind: type[T], row: Row) -> T:
    """Return the row as a dataclass that has a field for each column of interest."""
    return kind(**{field.name: row[field.name] for field in fields(cast("Any", kind))})
