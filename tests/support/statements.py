"""Statements as drivers take them."""

from __future__ import annotations

from typing import Any

from storage.sql.database import Statement
from storage.sql.postgres_transaction import to_postgres


def named_params(statement: Statement) -> dict[str, Any]:
    """Return the parameters of a statement by name, also those of a row."""
    if not statement.row:
        return dict(statement.params)
    return dict(zip(to_postgres(statement.sql).names, statement.row, strict=True))
