"""Changes of rows: a cache must learn of each one of its process, and that another process has committed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from storage.errors import Stale
from storage.sql.database import Statement
from storage.sql.inline_reader import InlineReader
from storage.sql.row_changes import MAX_UNASKED, ChangedRows, GroupCounts, RowChanges
from storage.sql.sqlite import SqliteDatabase
from storage.sql.writer.group_writer import LAST_LOOK_SECONDS

pytestmark = pytest.mark.anyio

EACH_WRITER = pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
UPDATE = "UPDATE items SET name = :name WHERE id = :id"


@dataclass(kw_only=True)
class Tracked:
    database: SqliteDatabase
    changes: RowChanges
    seen: list[str] = field(default_factory=list)

    def commit_elsewhere(self, sql: str = "UPDATE items SET name = 'foreign' WHERE id = 'a'") -> None:
        """Commit as another process would: through a connection of its own."""
        with closing(sqlite3.connect(self.database.path, isolation_level=None)) as other:
            other.execute(sql)


@asynccontextmanager
async def tracked(folder: Path, own_process: bool) -> AsyncIterator[Tracked]:
    async with SqliteDatabase(folder / "broker.db", own_process=own_process) as database:
        await database.execute("CREATE TABLE items (id TEXT PRIMARY KEY, name TEXT, lease BIGINT)")
        await database.execute("INSERT INTO items VALUES ('a', 'x', 0), ('b', 'x', 0)")
        changes = await database.track_changes("items", but={"lease"})
        assert changes is not None
        changes.epoch()
        await next_turn()
        one = Tracked(database=database, changes=changes)
        changes.subscribe(one.seen.extend)
        yield one


async def next_turn() -> None:
    for _ in range(2):
        await asyncio.sleep(0)


@EACH_WRITER
async def test_changed_rows_are_reported_before_their_writer_goes_on(tmp_path: Path, own_process: bool) -> None:
    async with tracked(tmp_path, own_process) as one:
        await one.database.execute(UPDATE, id="a", name="y")
        assert one.seen == ["a"]
        await one.database.execute("DELETE FROM items WHERE name = 'x'")
        assert one.seen == ["a", "b"]


@EACH_WRITER
async def test_ignored_columns_are_not_reported(tmp_path: Path, own_process: bool) -> None:
    async with tracked(tmp_path, own_process) as one:
        await one.database.execute("UPDATE items SET lease = 1")
        assert one.seen == []


@EACH_WRITER
async def test_failing_write_hides_no_change_of_its_neighbours(tmp_path: Path, own_process: bool) -> None:
    async with tracked(tmp_path, own_process) as one:
        good = Statement(sql=UPDATE, params={"id": "a", "name": "y"})
        stale = Statement(sql=UPDATE, params={"id": "missing", "name": "y"}, must_change=True)

        async def fail() -> None:
            with suppress(Stale):
                await one.database.transact(stale)

        await asyncio.gather(fail(), one.database.transact(good), fail())
        assert one.seen == ["a"]


@EACH_WRITER
async def test_own_commits_do_not_change_the_epoch(tmp_path: Path, own_process: bool) -> None:
    async with tracked(tmp_path, own_process) as one:
        before = one.changes.epoch()
        for number in range(20):
            await asyncio.gather(*(one.database.execute(UPDATE, id="a", name=f"{number}") for _ in range(3)))
            assert one.changes.epoch() == before


@EACH_WRITER
async def test_foreign_commit_changes_the_epoch_at_once(tmp_path: Path, own_process: bool) -> None:
    async with tracked(tmp_path, own_process) as one:
        before = one.changes.epoch()
        await next_turn()
        one.commit_elsewhere()
        assert one.changes.epoch() > before


@EACH_WRITER
async def test_foreign_commit_between_own_ones_is_found_by_the_next_one(tmp_path: Path, own_process: bool) -> None:
    async with tracked(tmp_path, own_process) as one:
        before = one.changes.epoch()
        await one.database.execute(UPDATE, id="b", name="1")
        one.commit_elsewhere()
        await one.database.execute(UPDATE, id="b", name="2")
        assert one.changes.epoch() > before


@EACH_WRITER
async def test_foreign_commit_right_after_an_own_one_is_found_without_another_one(
    tmp_path: Path, own_process: bool
) -> None:
    async with tracked(tmp_path, own_process) as one:
        before = one.changes.epoch()
        await next_turn()
        await one.database.execute(UPDATE, id="b", name="1")
        one.commit_elsewhere()
        one.changes.epoch()  # cannot tell the two apart
        async with asyncio.timeout(LAST_LOOK_SECONDS * 20):
            while one.changes.epoch() == before:  # noqa: ASYNC110
                await asyncio.sleep(LAST_LOOK_SECONDS / 10)


@EACH_WRITER
async def test_foreign_commit_long_after_an_own_one_is_seen_at_once(tmp_path: Path, own_process: bool) -> None:
    """The writer has looked for the last time, and no request asked in between."""
    async with tracked(tmp_path, own_process) as one:
        before = one.changes.epoch()
        await one.database.execute(UPDATE, id="b", name="1")
        await asyncio.sleep(LAST_LOOK_SECONDS * 1.5)
        one.commit_elsewhere()
        assert one.changes.epoch() > before


@EACH_WRITER
async def test_many_questions_of_one_turn_cost_one_look(tmp_path: Path, own_process: bool) -> None:
    async with tracked(tmp_path, own_process) as one:
        before = one.changes.epoch()
        one.commit_elsewhere()
        assert one.changes.epoch() == before  # asked in the turn of the look
        await next_turn()
        assert one.changes.epoch() > before


@EACH_WRITER
async def test_foreign_commit_among_many_own_ones_changes_the_epoch_at_the_next_question(
    tmp_path: Path, own_process: bool
) -> None:
    async with tracked(tmp_path, own_process) as one:
        before = one.changes.epoch()
        for number in range(2 * MAX_UNASKED):
            await one.database.execute(UPDATE, id="b", name=f"{number}")
            if number == MAX_UNASKED + 3:
                one.commit_elsewhere()
        await next_turn()
        now = one.changes.epoch()
        assert now > before
        for number in range(3):
            await one.database.execute(UPDATE, id="b", name=f"{number} again")
        await next_turn()
        one.commit_elsewhere("UPDATE items SET name = 'foreign again' WHERE id = 'a'")
        await one.database.execute(UPDATE, id="b", name="last")
        assert one.changes.epoch() > now, "it is looked for again from the question on"


class CountingReader(InlineReader):
    looks = 0

    def read_version(self) -> int:
        self.looks += 1
        return 1


async def test_commits_without_a_question_cost_no_look() -> None:
    reader = CountingReader(lambda: sqlite3.connect(":memory:"))
    changes = RowChanges(GroupCounts(), reader)
    changes.epoch()
    for _ in range(10 * MAX_UNASKED):
        changes.report(ChangedRows((), is_foreign=False))
    assert reader.looks == 1 + MAX_UNASKED
