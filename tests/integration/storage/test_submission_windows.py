"""The window of submissions of a key: exact, whatever saves counting it, and at a price that does not grow with it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from storage.attempts import Attempt
from storage.errors import Stale
from storage.limits.provider_limits import WINDOW_SECONDS, AccountLimits, ProviderLimits
from storage.sql.database import Database
from storage.sql.migrate import upgrade_schema
from storage.sql.rows import insert_row
from storage.sql.sqlite import SqliteDatabase
from tests.contracts.databases import DATABASES

pytestmark = pytest.mark.anyio

NOW = 1_000_000.0
LIMIT = 4
LIMITS = AccountLimits(creates_per_window=LIMIT, concurrency=1_000_000)


@pytest.fixture(params=DATABASES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with await DATABASES[request.param](request, tmp_path) as opened:
        await upgrade_schema(opened, NOW)
        yield opened


async def submits(database: Database, number: int, sent_at: float) -> bool:
    attempt = Attempt(task_id=f"task_{number:043x}", number=1, provider="kie", key_id="default", sent_at=sent_at)
    try:
        await database.transact(*ProviderLimits(database).reserve_submission(attempt, LIMITS))
    except Stale:
        return False
    return True


async def test_window_slides_with_each_submission(database: Database) -> None:
    """Beside a plain count of the submissions of the last ten seconds; one clock is behind, and waits are long."""
    chance, now, sent = Random(7), NOW, list[float]()
    for number in range(400):
        now += chance.choice((0.1, 0.7, 2.0, 3.0, 9.0, 21.0 if number % 9 == 0 else 0.3))
        at = now - chance.choice((0.0, 0.0, 1.5))
        used = sum(at - WINDOW_SECONDS < one <= at + WINDOW_SECONDS for one in sent)
        assert await submits(database, number, at) == (used < LIMIT), (number, used)
        if used < LIMIT:
            sent.append(at)
    assert len(sent) > 100


async def test_window_is_exact_after_the_clock_was_set_back(database: Database) -> None:
    for number in range(LIMIT):
        assert await submits(database, number, NOW)
    assert [await submits(database, 10 + number, NOW - 7200) for number in range(LIMIT + 1)] == [True] * LIMIT + [False]


def count_steps(connection: sqlite3.Connection, *statements: Any) -> int:
    """Return the instructions of SQLite that statements take, and undo them."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection.set_progress_handler(step, 1)
    connection.execute("BEGIN")
    for statement in statements:
        connection.execute(statement.sql, statement.params)
    connection.execute("ROLLBACK")
    return steps


async def test_submission_does_not_count_its_window(tmp_path: Path) -> None:
    file = tmp_path / "broker.db"
    async with SqliteDatabase(file) as database:
        await upgrade_schema(database, NOW)
        wide = AccountLimits(creates_per_window=1_000_000, concurrency=1_000_000)
        new = Attempt(task_id="task_new", number=1, provider="kie", key_id="default", sent_at=NOW + 1)
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            reserving = ProviderLimits(database).reserve_submission(new, wide)
            before = count_steps(connection, *reserving)
            earlier = [Attempt(**{**vars(new), "task_id": f"task_{number}", "sent_at": NOW}) for number in range(1000)]
            await database.transact(*(insert_row("attempts", one) for one in earlier))
            assert count_steps(connection, *reserving) < before + 50
