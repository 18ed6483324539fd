"""What SQLite in particular must do: survive, say what is wrong, and commit in groups."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from storage.database import Statement, StorageError, StorageFull
from storage.migrate import SchemaTooNew, upgrade
from storage.sqlite import SqliteDatabase, sqlite_path

pytestmark = pytest.mark.anyio


async def test_the_file_is_kept_as_promised(tmp_path: Path) -> None:
    """WAL, and FULL: what was acknowledged survives a power cut."""
    async with SqliteDatabase(tmp_path / "b.db") as database:
        journal = await database._writer.run(lambda c: c.execute("PRAGMA journal_mode").fetchone())
        synchronous = await database._writer.run(lambda c: c.execute("PRAGMA synchronous").fetchone())
        mmap = await database._reader.run(lambda c: c.execute("PRAGMA mmap_size").fetchone())
    assert (journal, synchronous, mmap) == ({"journal_mode": "wal"}, {"synchronous": 2}, {"mmap_size": 0})


async def test_readers_cannot_write(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "b.db") as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        with pytest.raises(StorageError):
            await database.fetch("INSERT INTO t VALUES (1)")


async def test_writers_at_once_share_commits(tmp_path: Path) -> None:
    """Group commit: far fewer commits than transactions."""
    async with SqliteDatabase(tmp_path / "b.db") as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        commits: list[str] = []
        await database._writer.run(lambda c: c.set_trace_callback(commits.append))
        await asyncio.gather(*(database.execute("INSERT INTO t VALUES (:n)", n=n) for n in range(200)))
        await database._writer.run(lambda c: c.set_trace_callback(None))
    assert 1 <= commits.count("COMMIT") <= 5


async def test_a_value_that_cannot_be_stored_harms_nobody_else(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "b.db") as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        told = await asyncio.gather(
            *(database.execute("INSERT INTO t VALUES (:n)", n=n) for n in (1, 2**70, 3)), return_exceptions=True
        )
        rows = await database.fetch("SELECT n FROM t ORDER BY n")
    assert [isinstance(one, Exception) for one in told] == [False, True, False]
    assert [row["n"] for row in rows] == [1, 3]


async def test_a_locked_database_is_waited_for_once_and_not_once_for_each(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with SqliteDatabase(path) as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        await database._writer.run(lambda c: c.execute("PRAGMA busy_timeout = 1").fetchall())
        begun: list[str] = []
        await database._writer.run(lambda c: c.set_trace_callback(begun.append))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            told = await asyncio.gather(
                *(database.execute("INSERT INTO t VALUES (:n)", n=n) for n in range(20)), return_exceptions=True
            )
            other.execute("ROLLBACK")
        await database._writer.run(lambda c: c.set_trace_callback(None))
        await database.execute("INSERT INTO t VALUES (99)")
    assert all(isinstance(one, StorageError) for one in told)
    assert begun.count("BEGIN IMMEDIATE") <= 2


async def test_many_can_open_a_fresh_file_at_once(tmp_path: Path) -> None:
    files = [SqliteDatabase(tmp_path / "b.db") for _ in range(6)]
    opened = await asyncio.gather(*(file.open() for file in files))
    await asyncio.gather(*(file.close() for file in opened))


async def test_a_full_disk_is_told_and_later_writes_go_on(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "b.db") as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        await database._writer.run(lambda c: c.execute("PRAGMA max_page_count = 20").fetchall())
        small = [database.execute("INSERT INTO t VALUES ('small')") for _ in range(3)]
        big = database.execute("INSERT INTO t VALUES (:x)", x="x" * 500_000)
        told = await asyncio.gather(*small, big, return_exceptions=True)
        await database._writer.run(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchall())
        await database.execute("INSERT INTO t VALUES ('after')")
        rows = await database.fetch("SELECT x FROM t")
    assert isinstance(told[-1], StorageFull)
    assert [row["x"] for row in rows] == ["small"] * 3 + ["after"]


async def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with SqliteDatabase(path) as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        await database.transact(
            *(Statement(sql="INSERT INTO t VALUES (:x)", params={"x": f"{n}" * 500}) for n in range(200))
        )
    broken = bytearray(path.read_bytes())
    broken[8192:20480] = b"\xff" * 12288
    path.write_bytes(broken)
    with pytest.raises(StorageError, match=r"damaged|malformed"):
        async with SqliteDatabase(path) as database:
            await database.check()
    assert path.read_bytes() == bytes(broken)


async def test_something_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.db").write_text("this is not a database, it only has its name" * 100)
    with pytest.raises(StorageError, match="restore it from a backup"):
        await SqliteDatabase(tmp_path / "b.db").open()


async def test_a_newer_schema_is_not_touched(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "b.db") as database:
        await upgrade(database, 1.0)
        await database.execute("INSERT INTO migrations VALUES (9999, '9999_future', 1.0)")
        with pytest.raises(SchemaTooNew, match="9999"):
            await upgrade(database, 2.0)


def test_addresses() -> None:
    assert sqlite_path("sqlite:///data/broker.db") == Path("data/broker.db")
    assert sqlite_path("sqlite:////var/lib/broker.db") == Path("/var/lib/broker.db")
    with pytest.raises(ValueError, match="sqlite:///"):
        sqlite_path("sqlite://broker.db")


KILLED = """
import asyncio, os, sys
from pathlib import Path
from storage.sqlite import SqliteDatabase

async def main():
    async with SqliteDatabase(Path(sys.argv[1])) as database:
        await database.execute("CREATE TABLE IF NOT EXISTS t (n BIGINT)")
        for n in range(100000):
            await database.execute("INSERT INTO t VALUES (:n)", n=n)
            print(n, flush=True)

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(line) for line, _ in zip(writer.stdout, range(50), strict=False)]
        writer.kill()
    with sqlite3.connect(path) as connection:
        kept = {n for (n,) in connection.execute("SELECT n FROM t")}
    connection.close()
    assert set(acknowledged) <= kept
