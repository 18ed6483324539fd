"""Equal inserts of several writes, run as few statements of many rows.

A statement opens each index of its table again, binds by name, and gives the GIL away five times: beside a busy event
loop that costs a task as much as its row. Sixteen rows are inserted in two thirds of the time of sixteen statements.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

from storage.sql.database import Statement

ROWS: Final = (16, 4, 1)
"""Rows of one statement, so that there are few texts: each is compiled once and kept."""
MIN_WRITES: Final = 4
"""Fewer are not worth it."""


def shape_of(statements: Sequence[Statement]) -> tuple[str, ...]:
    """Return the texts of a transaction of inserts, which runs together with its like; empty for any other."""
    texts = tuple([one.sql for one in statements if one.row])
    return texts if len(texts) == len(statements) else ()


def insert_together(connection: sqlite3.Connection, statements: Sequence[Statement]) -> bool:
    """Run statements of one text; return whether each has changed a row."""
    text, names = statements[0].sql, statements[0].row
    values_of = itemgetter(*names) if len(names) > 1 else lambda params: (params[names[0]],)
    start, changed = 0, 0
    for size in ROWS:
        while len(statements) - start >= size:
            values: list[Any] = []
            for statement in statements[start : start + size]:
                values += values_of(statement.params)
            changed += connection.execute(_text_of_rows(text, names, size), values).rowcount
            start += size
    return changed == len(statements)


@lru_cache(maxsize=256)
def _text_of_rows(text: str, names: tuple[str, ...], count: int) -> str:
    """Return the text of an insert for several rows."""
    row = f"({', '.join(f':{name}' for name in names)})"
    head, found, tail = text.partition(row)
    if not found or ":" in tail:
        raise ValueError(f"no insert of one row: {text}")
    marks = f"({', '.join('?' * len(names))})"
    return f"{head}{', '.join([marks] * count)}{tail}"
