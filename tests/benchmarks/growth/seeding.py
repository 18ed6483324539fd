"""Many tasks in a database, by a few large statements: all indexes are there, as in a broker that ran for long."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from anyio import to_thread

from storage.sql.database import Statement
from storage.sql.migrate import upgrade_schema
from storage.sql.postgres import PostgresDatabase
from storage.sql.rows import to_columns
from storage.sql.sqlite import SqliteDatabase
from storage.sql.writer.connections import open_connection
from tests.benchmarks.engines.company import new_task

DAYS: Final = 8
"""Age of the oldest task."""
DUE: Final = 200
"""Tasks in flight whose next step is due."""
PROVIDER: Final = "kie"
CHUNK: Final = 20_000
"""Rows of one statement on Postgres, which gives each of them some seconds."""
SEED_PRAGMAS: Final = "PRAGMA synchronous=OFF; PRAGMA cache_size=-1000000; PRAGMA temp_store=MEMORY;"

_NUMBERS: Final = {
    "sqlite": """WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)
        INSERT INTO tasks ({columns}) SELECT {terms} FROM numbers""",
    "postgres": """INSERT INTO tasks ({columns}) SELECT {terms}
        FROM generate_series(CAST(:first AS BIGINT), CAST(:last AS BIGINT)) AS numbers(n)""",
}
_RANDOM: Final = {"sqlite": "lower(hex(randomblob(16)))", "postgres": "md5(random()::text || n)"}
_MOMENT: Final = {
    "sqlite": "printf('%011x', CAST(({}) * 1000 AS INTEGER))",
    "postgres": "lpad(to_hex(CAST(({}) * 1000 AS BIGINT)), 11, '0')",
}
_ENDED_AT: Final = f":now - {DAYS * 86400.0} * (:count - n) / :count"
_STORED: Final = {
    "state": "CASE n % 50 WHEN 7 THEN 'failed' WHEN 9 THEN 'canceled' ELSE 'succeeded' END",
    "attempt": "1",
    "due_at": f"{_ENDED_AT} + 86400.0 * 30",
    "created_at": f"{_ENDED_AT} - 30.0",
    "updated_at": _ENDED_AT,
    "entered_at": _ENDED_AT,
    "ended_at": _ENDED_AT,
    "sent_at": f"{_ENDED_AT} - 29.0",
    "finished_at": f"{_ENDED_AT} - 1.0",
}
_IN_FLIGHT: Final = {
    "state": "CASE n % 2 WHEN 0 THEN 'queued' ELSE 'waiting' END",
    "due_at": f"CASE WHEN n <= {DUE} THEN 1.0 + n ELSE :now + 86400.0 END",
    "created_at": ":now - 60.0 * (:count - n) / :count",
}
_ATTEMPTS: Final = """INSERT INTO attempts
    (task_id, number, provider, key_id, job_id, sent_at, ended_at, outcome, billed, price, usd_per_unit, cost)
    SELECT id, 1, provider, 'default', job_id, sent_at, ended_at, 'succeeded', 'yes', 4.0, 0.005, 4.0 FROM tasks
    WHERE sent_at IS NOT NULL ORDER BY created_at"""
_IMAGES: Final = """INSERT INTO images (name, owner, caller, kind, position, blob, media_type, size, width, height,
        sha256, created_at)
    SELECT 'generated_' || substr(id, 6) || '.png', id, caller, 'result', 0, id || '/' || substr(id, 6), 'image/png',
        2000000, 1024, 1024, substr(id, 17) || substr(id, 17), ended_at FROM tasks WHERE state = 'succeeded'"""


def _insert_tasks(dialect: str, terms: dict[str, str], first: int, last: int, count: int) -> tuple[str, dict[str, Any]]:
    random, moment = _RANDOM[dialect], _MOMENT[dialect].format(terms["created_at"])
    row = to_columns(vars(new_task(PROVIDER)))
    all_terms = {
        **{name: f":{name}" for name in row},
        "id": f"'task_' || {moment} || {random}",
        "batch": f"'batch_' || {moment} || {random}",
        "job_id": random,
        "caller": "'user_' || (100000 + n % 1000)",
        **terms,
    }
    used = {name: value for name, value in row.items() if all_terms[name] == f":{name}"}
    columns = ", ".join(f'"{name}"' for name in row)
    sql = _NUMBERS[dialect].format(columns=columns, terms=", ".join(all_terms[name] for name in row))
    return sql, {**used, "first": first, "last": last, "count": count, "now": time.time()}


def _statements(dialect: str, stored: int, in_flight: int, chunk: int) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for terms, count in ((_STORED, stored), (_IN_FLIGHT, in_flight)):
        for first in range(1, count + 1, chunk):
            found.append(_insert_tasks(dialect, terms, first, min(first + chunk - 1, count), count))
    return [*found, (_ATTEMPTS, {}), (_IMAGES, {})]


async def seed_sqlite(path: Path, stored: int, in_flight: int) -> float:
    """Make a database; return the seconds that the rows took."""
    async with SqliteDatabase(path) as database:
        await upgrade_schema(database, time.time())

    def insert() -> None:
        with closing(open_connection(path, SEED_PRAGMAS)) as connection:
            connection.execute("BEGIN")
            for sql, params in _statements("sqlite", stored, in_flight, max(stored, in_flight)):
                connection.execute(sql, params)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    begun = time.monotonic()
    await to_thread.run_sync(insert)
    return time.monotonic() - begun


async def seed_postgres(url: str, stored: int, in_flight: int) -> float:
    """Fill an empty database; return the seconds that the rows took."""
    async with PostgresDatabase(url, statement_seconds=3600.0) as database:
        await upgrade_schema(database, time.time())
        begun = time.monotonic()
        for sql, params in _statements("postgres", stored, in_flight, CHUNK):
            await database.transact(Statement(sql=sql, params=params))
        for table in ("tasks", "attempts", "images"):
            await database.execute(f"ANALYZE {table}")
        return time.monotonic() - begun
