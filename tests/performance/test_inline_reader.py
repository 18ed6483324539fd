"""Reads in the event loop: those of one turn share a transaction, and no read is older than its turn."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from storage.sql.inline_reader import InlineReader

pytestmark = pytest.mark.anyio

READ = "SELECT value FROM facts"
READ_OF = "SELECT value FROM facts WHERE value = :value"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[InlineReader, sqlite3.Connection, list[str]]]:
    """Yield a reader, a connection that writes, and the statements of the reader."""
    statements: list[str] = []

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.set_trace_callback(statements.append)
        return connection

    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.executescript("PRAGMA journal_mode=WAL; CREATE TABLE facts (value); INSERT INTO facts VALUES ('old')")
        async with InlineReader(connect) as reader:
            yield reader, writer, statements


async def test_reads_of_one_turn_share_a_transaction(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as (reader, _, statements):
        for _ in range(2):
            for _ in range(5):
                assert reader.fetch_in_turn(READ_OF, {"value": "old"}) == [("old",)]
            await asyncio.sleep(0)
        read = READ_OF.replace(":value", "'old'")
        assert statements == ["BEGIN", *[read] * 5, "COMMIT"] * 2


async def test_statement_without_parameters_runs_once_in_a_turn(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as (reader, _, statements):
        for _ in range(2):
            for _ in range(5):
                assert reader.fetch_in_turn(READ, {}) == [("old",)]
            await asyncio.sleep(0)
        assert statements == ["BEGIN", READ, "COMMIT"] * 2


async def test_commit_is_seen_in_the_next_turn_and_by_every_other_read(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as (reader, writer, _):
        before = reader.read_version()
        reader.fetch_in_turn(READ, {})
        writer.execute("UPDATE facts SET value = 'new'")
        assert reader.fetch_in_turn(READ, {}) == [("old",)]
        assert reader.read_version() != before
        assert reader.fetch_in_turn(READ, {}) == [("new",)]
        writer.execute("UPDATE facts SET value = 'newer'")
        row = reader.fetch_one(READ, {})
        assert row is not None
        assert tuple(row) == ("newer",)
        reader.fetch_in_turn(READ, {})
        writer.execute("UPDATE facts SET value = 'newest'")
        await asyncio.sleep(0)
        assert reader.fetch_in_turn(READ, {}) == [("newest",)]


async def test_log_is_emptied_after_the_turn(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as (reader, writer, _):
        writer.execute("UPDATE facts SET value = 'new'")
        reader.fetch_in_turn(READ, {})
        await asyncio.sleep(0)
        assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        assert reader.fetch_in_turn(READ, {}) == [("new",)]
