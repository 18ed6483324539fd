"""Equal inserts of several writes, run as few statements of many rows.

A statement opens each index of its table again: sixteen rows are inserted in two thirds of the time of sixteen
statements.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from storage.sql.writer.groups import PlainStatement

ROWS: Final = (16, 4, 1)
"""Rows of one statement, so that there are few texts: each is compiled once and kept."""
_ROW: Final = re.compile(r"(?<=VALUES )\([^()]*\)")
_VALUE: Final = re.compile(r":\w+")
MIN_WRITES: Final = 4
"""Fewer are not worth it."""


def shape_of(statements: Sequence[PlainStatement]) -> tuple[str, ...]:
    """Return the texts of a transaction of inserts, which runs together with its like; empty for any other."""
    texts = tuple([sql for sql, _, _, _, row in statements if row])
    return texts if len(texts) == len(statements) else ()


def insert_together(connection: sqlite3.Connection, statements: Sequence[PlainStatement]) -> bool:
    """Run statements of one text; return whether each has changed a row."""
    text = statements[0][0]
    start, changed = 0, 0
    for size in ROWS:
        while len(statements) - start >= size:
            values: list[Any] = []
            for _, _, _, _, row in statements[start : start + size]:
                values += row
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
