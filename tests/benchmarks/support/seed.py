"""Databases with many stored tasks: a real task, created over HTTP, and as many copies of its rows as wanted."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anyio import to_thread

from tests.benchmarks.support.bench import Bench
from webhooks.tokens import CallbackTokens

TABLES: Final = {"tasks": "id", "attempts": "task_id", "images": "owner"}
"""Tables of a task, and the column that names it."""
SAMPLE: Final = 200_000
"""Ids of which polls of any task are."""
PATIENT: Final = {"BROKER_CHECK_AFTER_SECONDS": "7200", "BROKER_TASK_DEADLINE_SECONDS": "14400"}
"""For brokers with waiting copies: none of them is due by itself."""
_SPREAD_SECONDS: Final = 12 * 3600
"""Age of the oldest copy."""


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """A data folder to copy. ids: of copies, in no order. jobs: the provider's job of each."""

    data: Path
    ids: tuple[str, ...]
    jobs: tuple[str, ...]

    async def copy(self, target: Path) -> Path:
        """Return a copy of the data folder for one broker."""
        await to_thread.run_sync(shutil.copytree, self.data, target)
        return target


async def seeded(bench: Bench, count: int, state: str = "succeeded") -> Seeded:
    """Return a data folder with `count` tasks in that state, `succeeded` or `waiting`; made once in a run."""
    key = f"seeded-{state}-{count}"
    if key not in bench.kept:
        data = bench.folder(key) / "data"
        delay = 0.0 if state == "succeeded" else None
        async with (
            bench.provider(delay=delay) as provider,
            bench.broker(provider, data=data, variables=PATIENT) as broker,
        ):
            task_id = await broker.create()
            await broker.wait_for(task_id, "completed" if state == "succeeded" else "processing")
            while not (await provider.control("stats"))["jobs"]:
                pass
        step = _SPREAD_SECONDS / count if state == "succeeded" else 0.0
        bench.kept[key] = await to_thread.run_sync(_copy_rows, data, task_id, count, step)
    found: Seeded = bench.kept[key]
    return found


def _copy_rows(data: Path, task_id: str, count: int, step_seconds: float) -> Seeded:
    with closing(sqlite3.connect(data / "broker.db", isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -1000000")
        connection.execute("CREATE TEMP TABLE copies (n INTEGER PRIMARY KEY, name TEXT, job TEXT, image TEXT)")
        find = "SELECT job_id, created_at FROM tasks WHERE id = ?"
        job, created_at = connection.execute(find, (task_id,)).fetchone()
        connection.execute(
            """WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
                INSERT INTO copies SELECT n, 'task_' || number || lower(hex(randomblob(16))),
                'job_' || lower(hex(randomblob(14))), 'generated_' || number || lower(hex(randomblob(16)))
                FROM (SELECT n, printf('%011x', CAST((:at - n * :step) * 1000 AS INTEGER)) AS number FROM numbers)""",
            {"count": count, "at": created_at, "step": step_seconds},
        )
        connection.execute("BEGIN")
        for table, column in TABLES.items():
            for row in connection.execute(f"SELECT * FROM {table} WHERE {column} = ?", (task_id,)).fetchall():
                sql, values = copy_statement(table, dict(row), task_id, job, step_seconds)
                connection.execute(sql, values)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        rows = connection.execute("SELECT name, job FROM copies").fetchall()
    random.Random(1).shuffle(rows)
    sample = rows[:SAMPLE]
    return Seeded(data=data, ids=tuple(row["name"] for row in sample), jobs=tuple(row["job"] for row in sample))


def copy_statement(
    table: str, row: Mapping[str, Any], task_id: str, job: str | None, step_seconds: float
) -> tuple[str, dict[str, Any]]:
    """Return the statement that copies a row for every line of `copies`: other ids, and moments ever earlier."""
    values, params = [], {}
    for name, value in row.items():
        term = f":{name}"
        params[name] = value
        if isinstance(value, str) and task_id in value:
            term = f"replace({term}, '{task_id}', c.name)"
        if isinstance(value, str) and job and job in value:
            term = f"replace({term}, '{job}', c.job)"
        if table == "images" and name == "name":
            term = f"c.image || '{Path(value).suffix}'"
        if name.endswith("_at") and isinstance(value, float) and step_seconds and value:
            term = f"{term} - c.n * {step_seconds!r}"
        values.append(term)
    columns = ", ".join(f'"{name}"' for name in row)
    return f"INSERT INTO {table} ({columns}) SELECT {', '.join(values)} FROM copies AS c", params


def callback_path(secret: str, task_id: str) -> str:
    """Return path and query of the callback URL of a task's first attempt, with the right token."""
    token = CallbackTokens(secret.encode()).token(task_id, 1)
    return f"/api/webhook/nano-banana?task={task_id}&attempt=1&token={token}"
