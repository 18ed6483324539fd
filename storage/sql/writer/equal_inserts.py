"""Equal inserts of several writes, run as few statements of many rows.

A statement opens each index of its table again, and gives the GIL away five times: beside a busy event
loop that costs a task as much as its row. Sixteen rows are inserted in two thirds of the time of sixteen statements.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from storage.sql.database import Statement

ROWS: Final = (16, 4, 1)
"""Rows of one statement, so that there are few texts: each is compiled once and kept."""
_ROW: Final = re.compile(r"(?<=VALUES )\([^()]*\)")
_VALUE: Final = re.compile(r":\w+")
MIN_WRITES: Final = 4
"""Fewer are not worth it."""


def shape_of(statements: Sequence[Statement]) -> tuple[str, ...]:
    """Return the texts of a transaction of inserts, which runs together with its like; empty for any other."""
    texts = tuple([one.sql for one in statements if one.row])
    return texts if len(texts) == len(statements) else ()


def insert_together(connection: sqlite3.Connection, statements: Sequence[Statement]) -> bool:
    """Run statements of one text; return whether each has changed a row."""
    text = statements[0].sql
    start, changed = 0, 0
    for size in ROWS:
        while len(statements) - start >= size:
            values: list[Any] = []
            for statement in statements[start : start + size]:
                values += statement.row
            changed += connection.execute(text_of_rows(text, size), values).rowcount
            start += size
    return changed == len(statements)


@lru_cache(maxsize=256)
def text_of_rows(text: str, count: int) -> str:
    """Return the text of an insert of `VALUES (:a, :b)` for some rows, whose values are bound in their order."""
    match = _ROW.search(text)
    if match is None or ":" in text[match.end() :]:
        raise ValueError(f"no insert of one row: {text}")
    row = _VALUE.sub("?", match[0])
    return f"{text[: match.start()]}{', '.join([row] * count)}{text[match.end() :]}"
