"""One transaction on Postgres, which can be run again when its end is unknown, and statements in Postgres' spelling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import asyncpg

from storage.errors import Stale
from storage.sql.database import Outcome, Statement, to_dicts
from storage.sql.postgres_errors import BROKEN
from storage.sql.postgres_pool import Connection


@dataclass(frozen=True)
class PostgresQuery:
    """Statement with `$1` instead of `:name`, and the names in order."""

    text: str
    names: tuple[str, ...]
    has_rows: bool


_PARAMETER = re.compile(r"'(?:[^']|'')*'|(?<![:\w]):([a-z_][a-z0-9_]*)")
_ROWS = re.compile(r"\bRETURNING\b|^\s*SELECT\b", re.IGNORECASE)


@lru_cache(maxsize=2048)
def to_postgres(sql: str) -> PostgresQuery:
    numbers: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        return f"${numbers.setdefault(match[1], len(numbers) + 1)}" if match[1] else match[0]

    text = _PARAMETER.sub(numbered, sql)
    return PostgresQuery(text, tuple(numbers), has_rows=_ROWS.search(sql) is not None)


def parameter_values(query: PostgresQuery, params: Any) -> list[Any]:
    return [_storable(params[name]) for name in query.names]


def _storable(value: Any) -> Any:
    # Postgres stores no NUL in texts: it is replaced when written and when searched
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


class PostgresTransaction:
    """One transaction, and the outcomes of an earlier run of which it is unknown whether it was committed."""

    def __init__(self, statements: Sequence[Statement], begin: str | None, seconds: float) -> None:
        self._statements = statements
        self._begin = begin
        self._seconds = seconds
        self._uncertain: list[Outcome] | None = None

    async def __call__(self, connection: Connection) -> list[Outcome]:
        try:
            return await (self._run_single(connection) if self._begin is None else self._run_all(connection))
        except asyncpg.UniqueViolationError:
            if self._uncertain is None:
                raise
            return self._uncertain  # our keys are unique: the earlier run was committed

    async def _run_single(self, connection: Connection) -> list[Outcome]:
        (statement,) = self._statements
        try:
            return [await _run_statement(connection, statement, self._seconds)]
        except BROKEN:
            self._uncertain = [Outcome(count=1)]
            raise

    async def _run_all(self, connection: Connection) -> list[Outcome]:
        try:
            await connection.execute(self._begin or "")
            outcomes = [await _run_statement(connection, statement, self._seconds) for statement in self._statements]
        except (Stale, asyncpg.PostgresError):
            with suppress(*BROKEN):
                await connection.execute("ROLLBACK")
            raise
        try:
            await connection.execute("COMMIT")
        except BROKEN:
            self._uncertain = outcomes
            raise
        return outcomes


async def _run_statement(connection: Connection, statement: Statement, seconds: float) -> Outcome:
    query = to_postgres(statement.sql)
    values = [*map(_storable, statement.row)] if statement.row else parameter_values(query, statement.params)
    if query.has_rows:
        rows = to_dicts(await connection.fetch(query.text, *values, timeout=seconds))
        outcome = Outcome(count=len(rows), rows=rows)
    else:
        status = await connection.execute(query.text, *values, timeout=seconds)
        outcome = Outcome(count=_count(status))
    if statement.must_change and outcome.count == 0:
        raise Stale
    return outcome


def _count(status: str) -> int:
    """Return the row count of `UPDATE 3`, `INSERT 0 1`, `CREATE TABLE`."""
    last = status.rpartition(" ")[2]
    return int(last) if last.isdigit() else 0
