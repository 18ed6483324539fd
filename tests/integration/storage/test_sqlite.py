"""SQLite: durability, group commit, and errors with their cures."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from storage.errors import DatabaseReplaced, StorageError, StorageFull
from storage.sql.database import Outcome, Statement
from storage.sql.migrate import SchemaTooNew, upgrade_schema
from storage.sql.row_changes import ChangedRows
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from storage.sql.writer.connections import WRITER_PRAGMAS, open_connection
from storage.sql.writer.group_commit import GroupCommitWriter
from storage.sql.writer.group_writer import CHECKPOINT_STATEMENTS, MAX_GROUP_STATEMENTS, GroupWriter
from storage.sql.writer.hosts import WriterProcess, WriterThread
from storage.sql.writer.row_recorder import RowRecorder

pytestmark = pytest.mark.anyio

EACH_WRITER = pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])


@EACH_WRITER
async def test_connections_use_wal_and_full_sync(tmp_path: Path, own_process: bool) -> None:
    """Acknowledged writes then survive a power cut."""
    async with SqliteDatabase(tmp_path / "b.db", own_process=own_process) as database:
        journal, synchronous = await database.transact(
            Statement(sql="PRAGMA journal_mode"), Statement(sql="PRAGMA synchronous")
        )
        mmap = await database.fetch("PRAGMA mmap_size")
    assert (journal.rows, synchronous.rows, mmap) == (
        [{"journal_mode": "wal"}],
        [{"synchronous": 2}],
        [{"mmap_size": 0}],
    )


async def test_readers_cannot_write(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "b.db") as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        with pytest.raises(StorageError):
            await database.fetch("INSERT INTO t VALUES (1)")


def in_thread(path: Path, connect: Callable[[], sqlite3.Connection]) -> GroupCommitWriter:
    return GroupCommitWriter(WriterThread(GroupWriter(path, connect=connect)))


@asynccontextmanager
async def traced_writer(path: Path, *pragmas: str) -> AsyncIterator[tuple[GroupCommitWriter, list[str]]]:
    """Provide a writer on a new table `t`, and the statements that it runs."""
    seen: list[str] = []

    def connect() -> sqlite3.Connection:
        connection = open_connection(path, WRITER_PRAGMAS)
        connection.executescript("".join(f"PRAGMA {pragma};" for pragma in pragmas))
        connection.execute("CREATE TABLE t (n BIGINT)")
        connection.set_trace_callback(seen.append)
        return connection

    writer = in_thread(path, connect)
    await writer.open()
    try:
        yield writer, seen
    finally:
        await writer.close()


def submit_numbers(writer: GroupCommitWriter, numbers: range) -> list[asyncio.Future[list[Outcome]]]:
    return [writer.submit([Statement(sql="INSERT INTO t VALUES (:n)", params={"n": n})]) for n in numbers]


async def test_concurrent_writes_share_commits(tmp_path: Path) -> None:
    """Group commit: fewer commits than transactions."""
    async with traced_writer(tmp_path / "b.db") as (writer, seen):
        await asyncio.gather(*submit_numbers(writer, range(200)))
    assert 1 <= seen.count("COMMIT") <= 5


async def test_callers_do_not_wait_for_the_checkpoint_that_follows_their_commit(tmp_path: Path) -> None:
    """It takes as long as ten commits."""
    written, waits = threading.Event(), list[bool]()

    def connect() -> sqlite3.Connection:
        connection = open_connection(tmp_path / "b.db", WRITER_PRAGMAS)
        connection.execute("CREATE TABLE t (n BIGINT)")
        connection.set_trace_callback(lambda sql: waits.append(written.wait(5)) if "checkpoint" in sql else None)
        return connection

    writer = in_thread(tmp_path / "b.db", connect)
    await writer.open()
    try:
        for start in range(0, CHECKPOINT_STATEMENTS, MAX_GROUP_STATEMENTS):
            await asyncio.gather(*submit_numbers(writer, range(start, start + MAX_GROUP_STATEMENTS)))
        written.set()
        await writer.flush()
    finally:
        await writer.close()
    assert waits == [True]


@EACH_WRITER
async def test_error_in_the_report_of_changes_stops_no_writes(tmp_path: Path, own_process: bool) -> None:
    loop, errors, reports = asyncio.get_running_loop(), list[BaseException](), list[ChangedRows]()

    def fail_once(changed: ChangedRows) -> None:
        reports.append(changed)
        if len(reports) == 1:
            raise RuntimeError("a listener failed")

    path = tmp_path / "b.db"
    host = WriterProcess(path, spends_reserve=False) if own_process else WriterThread(GroupWriter(path))
    writer = GroupCommitWriter(host, on_changes=fail_once, on_loss=pytest.fail)
    await writer.open()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    try:
        await asyncio.wait_for(writer.submit([Statement(sql="CREATE TABLE t (n BIGINT)")]), 4)
        await asyncio.wait_for(submit_numbers(writer, range(1))[0], 4)
    finally:
        loop.set_exception_handler(handler)
        await writer.close()
    assert [str(error) for error in errors] == ["a listener failed"]


async def test_flush_reports_no_error_of_the_writes(tmp_path: Path) -> None:
    """Each caller is told of its own; the loop would report one that nothing looks at."""
    loop, errors = asyncio.get_running_loop(), list[object]()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    try:
        async with traced_writer(tmp_path / "b.db") as (writer, _):
            (tmp_path / "b.db").rename(tmp_path / "away.db")
            (writing,) = submit_numbers(writer, range(1))
            await writer.flush()
            with pytest.raises(DatabaseReplaced):
                await writing
        del writing
        gc.collect()  # of what the thread kept, too
    finally:
        loop.set_exception_handler(handler)
    assert not errors


async def test_flush_waits_for_all_writes(tmp_path: Path) -> None:
    async with traced_writer(tmp_path / "b.db") as (writer, _):
        writes = submit_numbers(writer, range(600))
        await writer.flush()
        assert all(write.done() for write in writes)


async def test_close_writes_all_that_was_handed_in(tmp_path: Path) -> None:
    async with traced_writer(tmp_path / "b.db") as (writer, _):
        writes = submit_numbers(writer, range(600))
    assert all(write.done() for write in writes)
    with closing(sqlite3.connect(tmp_path / "b.db")) as other:
        assert other.execute("SELECT count(*) FROM t").fetchone() == (600,)


def test_writes_are_finished_when_the_event_loop_ends_first(tmp_path: Path) -> None:
    """An interrupted process may leave its loop without `close`."""
    loop_ended = threading.Event()

    def connect() -> sqlite3.Connection:
        connection = open_connection(tmp_path / "b.db", WRITER_PRAGMAS)
        connection.execute("CREATE TABLE t (n BIGINT)")
        connection.create_function("wait", 0, loop_ended.wait)
        connection.execute("CREATE TEMP TRIGGER slow BEFORE INSERT ON main.t BEGIN SELECT wait(); END")
        return connection

    async def interrupted() -> GroupCommitWriter:
        writer = in_thread(tmp_path / "b.db", connect)
        await writer.open()
        submit_numbers(writer, range(3))
        return writer

    writer = asyncio.run(interrupted())
    loop_ended.set()
    asyncio.run(writer.close())
    with closing(sqlite3.connect(tmp_path / "b.db")) as other:
        assert other.execute("SELECT count(*) FROM t").fetchone() == (3,)


async def test_commit_into_a_file_removed_meanwhile_is_not_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "b.db"

    def connect() -> sqlite3.Connection:
        connection = open_connection(path, WRITER_PRAGMAS)
        connection.create_function("remove", 0, path.unlink)
        return connection

    writer = in_thread(path, connect)
    await writer.open()
    try:
        with pytest.raises(DatabaseReplaced):
            await writer.submit([Statement(sql="SELECT remove()")])
    finally:
        await writer.close()


async def test_refused_writes_copy_no_log_into_the_file_that_came_back(tmp_path: Path) -> None:
    """It may be a backup that was copied over the database: pages of the log before would damage it."""
    path = tmp_path / "b.db"
    async with traced_writer(path) as (writer, seen):
        await writer.submit([Statement(sql="INSERT INTO t VALUES (1)")])
        (tmp_path / "b.db-wal").unlink()
        before, insert = path.read_bytes(), Statement(sql="INSERT INTO t VALUES (2)")
        for _ in range(CHECKPOINT_STATEMENTS // MAX_GROUP_STATEMENTS + 2):
            with pytest.raises(DatabaseReplaced):
                await writer.submit([insert] * MAX_GROUP_STATEMENTS)
        assert path.read_bytes() == before
        assert not any("checkpoint" in sql for sql in seen)


async def test_failed_open_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "b.db").write_text("this is not a database" * 100)
    with pytest.raises(StorageError):
        async with SqliteDatabase(tmp_path / "b.db"):
            pytest.fail("not reached")
    assert [thread.name for thread in threading.enumerate() if thread.name == "sqlite-writer"] == []


@EACH_WRITER
async def test_unstorable_value_does_not_affect_other_writers(tmp_path: Path, own_process: bool) -> None:
    async with SqliteDatabase(tmp_path / "b.db", own_process=own_process) as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        results = await asyncio.gather(
            *(database.execute("INSERT INTO t VALUES (:n)", n=n) for n in (1, 2**70, 3)), return_exceptions=True
        )
        rows = await database.fetch("SELECT n FROM t ORDER BY n")
    assert [isinstance(one, Exception) for one in results] == [False, True, False]
    assert [row["n"] for row in rows] == [1, 3]


async def test_writer_goes_on_after_an_error_at_the_beginning_of_a_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that stayed open would fail all later ones."""
    look, failures = RowRecorder.look, [sqlite3.OperationalError("disk I/O error")] * 4

    def fail_first(recorder: RowRecorder) -> bool:
        if failures:
            raise failures.pop()
        return look(recorder)

    async with traced_writer(tmp_path / "b.db") as (writer, _):
        monkeypatch.setattr(RowRecorder, "look", fail_first)
        failed = await asyncio.gather(*submit_numbers(writer, range(2)), return_exceptions=True)
        assert [type(one) for one in failed] == [sqlite3.OperationalError] * 2
        await asyncio.gather(*submit_numbers(writer, range(2)))
        assert writer.counts.begun == writer.counts.finished


async def test_group_waits_once_for_a_locked_database(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with traced_writer(path, "busy_timeout=1") as (writer, seen):
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            results = await asyncio.gather(*submit_numbers(writer, range(20)), return_exceptions=True)
            other.execute("ROLLBACK")
        begun = seen.count("BEGIN IMMEDIATE")
        await asyncio.gather(*submit_numbers(writer, range(1)))
    assert all(isinstance(one, sqlite3.OperationalError) for one in results)
    assert begun <= 2


@EACH_WRITER
async def test_locked_database_is_a_storage_error(tmp_path: Path, own_process: bool) -> None:
    path = tmp_path / "b.db"
    async with SqliteDatabase(path, own_process=own_process) as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        await database.execute("PRAGMA busy_timeout = 1")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="another process holds it"):
                await database.execute("INSERT INTO t VALUES (1)")
            other.execute("ROLLBACK")
        await database.execute("INSERT INTO t VALUES (99)")


@EACH_WRITER
async def test_new_file_is_opened_concurrently(tmp_path: Path, own_process: bool) -> None:
    async def read_once() -> None:
        async with SqliteDatabase(tmp_path / "b.db", own_process=own_process) as database:
            assert await database.fetch("SELECT 1 AS one") == [{"one": 1}]

    await asyncio.gather(*(read_once() for _ in range(6)))


@EACH_WRITER
async def test_full_disk_fails_one_write_and_later_writes_succeed(tmp_path: Path, own_process: bool) -> None:
    async with SqliteDatabase(tmp_path / "b.db", own_process=own_process) as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        await database.execute("PRAGMA max_page_count = 20")
        small = [database.execute("INSERT INTO t VALUES ('small')") for _ in range(3)]
        big = database.execute("INSERT INTO t VALUES (:x)", x="x" * 500_000)
        results = await asyncio.gather(*small, big, return_exceptions=True)
        await database.execute("PRAGMA max_page_count = 1000000")
        await database.execute("INSERT INTO t VALUES ('after')")
        rows = await database.fetch("SELECT x FROM t")
    assert isinstance(results[-1], StorageFull)
    assert [row["x"] for row in rows] == ["small"] * 3 + ["after"]


async def test_damaged_file_is_rejected_unchanged(tmp_path: Path) -> None:
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


@EACH_WRITER
async def test_file_that_is_not_a_database_is_rejected(tmp_path: Path, own_process: bool) -> None:
    (tmp_path / "b.db").write_text("this is not a database, it only has its name" * 100)
    with pytest.raises(StorageError, match="restore it from a backup"):
        async with SqliteDatabase(tmp_path / "b.db", own_process=own_process):
            pytest.fail("not reached")


async def test_newer_schema_is_rejected(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "b.db") as database:
        await upgrade_schema(database, 1.0)
        await database.execute("INSERT INTO migrations VALUES (9999, '9999_future', 1.0)")
        with pytest.raises(SchemaTooNew, match="9999"):
            await upgrade_schema(database, 2.0)


def test_sqlite_url_is_parsed() -> None:
    assert sqlite_path("sqlite:///data/broker.db") == Path("data/broker.db")
    assert sqlite_path("sqlite:////var/lib/broker.db") == Path("/var/lib/broker.db")
    with pytest.raises(ValueError, match="sqlite:///"):
        sqlite_path("sqlite://broker.db")


KILLED = """
import asyncio, os, sys
from pathlib import Path
from storage.sql.sqlite import SqliteDatabase

async def main():
    async with SqliteDatabase(Path(sys.argv[1])) as database:
        await database.execute("CREATE TABLE IF NOT EXISTS t (n BIGINT)")
        for n in range(100000):
            await database.execute("INSERT INTO t VALUES (:n)", n=n)
            print(n, flush=True)

asyncio.run(main())
"""


def test_acknowledged_writes_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(line) for line, _ in zip(writer.stdout, range(50), strict=False)]
        writer.kill()
    with sqlite3.connect(path) as connection:
        kept = {n for (n,) in connection.execute("SELECT n FROM t")}
    connection.close()
    assert set(acknowledged) <= kept


@EACH_WRITER
async def test_damage_that_is_found_after_the_start_refuses_all_writes(tmp_path: Path, own_process: bool) -> None:
    path = tmp_path / "b.db"
    async with SqliteDatabase(path, own_process=own_process) as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        await database.transact(
            *(Statement(sql="INSERT INTO t VALUES (:x)", params={"x": f"{n}" * 500}) for n in range(200))
        )
    broken = bytearray(path.read_bytes())
    broken[8192:20480] = b"\xff" * 12288
    path.write_bytes(broken)
    async with SqliteDatabase(path, own_process=own_process) as database:
        await database.check(patience_seconds=0)
        async with asyncio.timeout(5):
            with pytest.raises(StorageError, match=r"damaged|malformed"):
                while True:
                    await database.check_files()
        with pytest.raises(StorageError, match=r"damaged|malformed"):
            await database.execute("CREATE TABLE u (x TEXT)")


async def test_check_that_still_runs_is_stopped_with_the_database(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "b.db") as database:
        await database.execute("CREATE TABLE t (x TEXT)")
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)"
        await database.execute(f"INSERT INTO t {numbers} SELECT hex(randomblob(500)) FROM n")
        await database.check(patience_seconds=0)
