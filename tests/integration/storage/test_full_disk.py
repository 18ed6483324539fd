"""SQLite on a full disk, and on files that were removed: what is still written, and what is never acknowledged."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.cluster_state import ClusterState
from storage.errors import DatabaseReplaced, StorageFull
from storage.sql.database import Statement
from storage.sql.migrate import upgrade_schema
from storage.sql.postgres import PostgresDatabase
from storage.sql.sqlite import SqliteDatabase
from storage.sql.writer.reserve import RESERVE_BYTES
from tests.support.servers.postgres import Postgres
from tests.support.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.anyio

EACH_WRITER = pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
ROOT = Path(__file__).parents[3]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 16) as opened:
        yield opened


def insert(text: str, *, may_use_reserve: bool = False) -> Statement:
    return Statement(sql="INSERT INTO t VALUES (:x)", params={"x": text}, may_use_reserve=may_use_reserve)


async def stored(database: SqliteDatabase) -> list[str]:
    return [row["x"] for row in await database.fetch("SELECT x FROM t ORDER BY rowid")]


async def fill(disk: SmallDisk, database: SqliteDatabase) -> None:
    """Fill the disk until the database takes no ordinary write: its log may have room left."""
    disk.fill()
    with pytest.raises(StorageFull):
        while True:
            await database.transact(insert("x" * 2**16))


@EACH_WRITER
async def test_outcomes_are_written_on_a_full_disk(disk: SmallDisk, own_process: bool) -> None:
    async with SqliteDatabase(disk.folder / "b.db", own_process=own_process) as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        await database.transact(insert("x" * 800 * 4096))  # the log is long: a checkpoint is near
        await fill(disk, database)
        before = await stored(database)
        for number in range(60):
            await database.transact(insert(f"job {number} {'y' * 20_000}", may_use_reserve=True))
        with pytest.raises(StorageFull):
            await database.transact(insert("an order"))
        assert len(await stored(database)) == len(before) + 60


@EACH_WRITER
async def test_an_order_does_not_fail_the_outcomes_of_its_group(disk: SmallDisk, own_process: bool) -> None:
    async with SqliteDatabase(disk.folder / "b.db", own_process=own_process) as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        await fill(disk, database)
        writes = [database.transact(insert("x" * 2**16, may_use_reserve=number % 2 == 0)) for number in range(20)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [isinstance(one, StorageFull) for one in results] == [number % 2 == 1 for number in range(20)]


@EACH_WRITER
async def test_all_is_written_again_once_the_reserve_is_whole(disk: SmallDisk, own_process: bool) -> None:
    async with SqliteDatabase(disk.folder / "b.db", own_process=own_process) as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        await fill(disk, database)
        await database.transact(insert("a job", may_use_reserve=True))
        assert (disk.folder / "b.db-reserve").stat().st_size < RESERVE_BYTES
        disk.free()
        await database.transact(insert("an order"))
        assert (disk.folder / "b.db-reserve").stat().st_size == RESERVE_BYTES
        assert (await stored(database))[-2:] == ["a job", "an order"]


@EACH_WRITER
async def test_a_process_that_frees_space_uses_the_reserve(disk: SmallDisk, own_process: bool) -> None:
    async with SqliteDatabase(disk.folder / "b.db", own_process=own_process) as database:
        await database.execute("CREATE TABLE t (x TEXT)")
    async with SqliteDatabase(disk.folder / "b.db", spends_reserve=True, own_process=own_process) as database:
        disk.fill()
        for _ in range(20):
            await database.transact(insert("x" * 2**16))
        assert (disk.folder / "b.db-reserve").stat().st_size < RESERVE_BYTES


async def test_disk_without_room_for_the_reserve_is_used(disk: SmallDisk) -> None:
    disk.fill(leave_bytes=RESERVE_BYTES // 2)
    async with SqliteDatabase(disk.folder / "b.db") as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        await database.transact(insert("an order"))
        assert not (disk.folder / "b.db-reserve").exists()


@EACH_WRITER
async def test_closed_database_opens_on_a_full_disk(disk: SmallDisk, own_process: bool) -> None:
    async with SqliteDatabase(disk.folder / "b.db", own_process=own_process) as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        await database.transact(insert("an order"))
    disk.fill()
    async with SqliteDatabase(disk.folder / "b.db", own_process=own_process) as database:
        assert await stored(database) == ["an order"]


KILLED = """
import asyncio, os, sys
from pathlib import Path
from storage.errors import StorageFull
from storage.sql.database import Statement
from storage.sql.sqlite import SqliteDatabase
from tests.support.servers.postgres import Postgres
from tests.support.small_disk import SmallDisk

def insert(text, **more):
    return Statement(sql="INSERT INTO t VALUES (:x)", params={"x": text}, **more)

async def main():
    disk = SmallDisk(Path(sys.argv[1]))
    async with SqliteDatabase(disk.folder / "b.db") as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        disk.fill()
        try:
            while True:
                await database.transact(insert("x" * 2**16))
        except StorageFull:
            await database.transact(insert("a job", may_use_reserve=True))
            disk.fill()
            os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.fixture
def killed(disk: SmallDisk) -> SmallDisk:
    """A full disk with the database of a process that was killed."""
    ended = subprocess.run([sys.executable, "-c", KILLED, str(disk.folder)], check=False, cwd=ROOT, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert disk.free_bytes == 0
    return disk


async def test_database_of_a_killed_process_opens_on_a_full_disk(killed: SmallDisk) -> None:
    async with SqliteDatabase(killed.folder / "b.db") as database:
        await database.check()
        assert (await stored(database))[-1] == "a job"
        with pytest.raises(StorageFull):
            await database.transact(insert("an order"))
        await database.transact(insert("another job", may_use_reserve=True))


async def test_probe_fails_while_the_disk_is_full(disk: SmallDisk) -> None:
    async with SqliteDatabase(disk.folder / "b.db") as database:
        await upgrade_schema(database, 1.0)
        await database.execute("CREATE TABLE t (x TEXT)")
        probe = ClusterState(database).probe_write
        await probe()
        await fill(disk, database)
        with pytest.raises(StorageFull):
            await probe()
        disk.free()
        await probe()


@pytest.fixture
def postgres_disk(postgres: Postgres) -> Iterator[SmallDisk]:
    """A small disk for tables. The log of the server is elsewhere: a server that cannot write its log stops."""
    place = Path(tempfile.mkdtemp(prefix="postgres-disk-"))
    place.chmod(0o755)
    with small_disk(place / "disk", 24) as opened:
        (opened.folder / "tables").mkdir()
        if postgres.user is not None:
            shutil.chown(opened.folder / "tables", postgres.user)
        yield opened
    shutil.rmtree(place)


async def test_probe_fails_while_the_disk_of_postgres_is_full(postgres: Postgres, postgres_disk: SmallDisk) -> None:
    name = f"small_{secrets.token_hex(4)}"
    await postgres.execute(f"CREATE TABLESPACE {name} LOCATION '{postgres_disk.folder / 'tables'}'")
    await postgres.execute(f"CREATE DATABASE {name} TABLESPACE {name}")
    try:
        async with PostgresDatabase(postgres.url(name)) as database:
            await upgrade_schema(database, 1.0)
            probe = ClusterState(database).probe_write
            await probe()
            postgres_disk.fill()
            with pytest.raises(StorageFull):
                for _ in range(100):  # the last pages have room left
                    await probe()
            with pytest.raises(StorageFull):
                await probe()
            postgres_disk.free()
            await probe()
    finally:
        await postgres.execute(f"DROP DATABASE {name}")
        await postgres.execute(f"DROP TABLESPACE {name}")


@EACH_WRITER
@pytest.mark.parametrize("name", ["b.db", "b.db-wal"])
async def test_write_to_a_removed_file_is_not_acknowledged(tmp_path: Path, name: str, own_process: bool) -> None:
    async with SqliteDatabase(tmp_path / "b.db", own_process=own_process) as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        (tmp_path / name).rename(tmp_path / "away")
        with pytest.raises(DatabaseReplaced, match="put that file back"):
            await database.transact(insert("an order"))
        with pytest.raises(DatabaseReplaced):
            await database.check_files()
        (tmp_path / name).write_bytes((tmp_path / "away").read_bytes())
        with pytest.raises(DatabaseReplaced):
            await database.transact(insert("into a copy"))
        (tmp_path / "away").rename(tmp_path / name)
        await database.check_files()
        await database.transact(insert("another order"))
        assert await stored(database) == ["another order"]
