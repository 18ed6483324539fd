"""The watch over the database's files, on a real file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.monitoring.database_files import watch_database_files
from storage.sql.sqlite import SqliteDatabase
from tests.support.log_lines import captured_lines

pytestmark = pytest.mark.anyio


class CheckedDatabase(SqliteDatabase):
    """A database that counts the checks of its files."""

    checks = 0

    async def check_files(self) -> None:
        self.checks += 1
        await super().check_files()

    async def wait_for_checks(self, count: int) -> None:
        seen = self.checks
        async with asyncio.timeout(20):
            while self.checks < seen + count:  # noqa: ASYNC110
                await asyncio.sleep(0.002)


async def test_loss_and_return_of_the_database_are_logged_once(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    with captured_lines() as lines:
        database = CheckedDatabase(path)
        async with database, watch_database_files(database, interval_seconds=0.001):
            await database.wait_for_checks(3)
            path.rename(tmp_path / "away.db")
            await database.wait_for_checks(5)
            (tmp_path / "away.db").rename(path)
            await database.wait_for_checks(5)
    assert [(line["level"], line["action"]) for line in lines] == [
        ("critical", "database_replaced"),
        ("info", "database_returned"),
    ]
    assert "restore a backup" in lines[0]["why"]
