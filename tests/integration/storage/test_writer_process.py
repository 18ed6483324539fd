"""The process that writes a SQLite file: the same writes as from a thread, and every way in which it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest

from storage.children.messages import frame
from storage.errors import DatabaseReplaced, Stale, StorageError
from storage.sql.database import Outcome, Statement
from storage.sql.row_changes import ChangedRows
from storage.sql.sqlite import SqliteDatabase
from storage.sql.writer.group_commit import GroupCommitWriter
from storage.sql.writer.hosts import WriterProcess
from storage.sql.writer.messages import Opening, encode_group

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000) SELECT max(i) FROM n"


class Color(StrEnum):
    RED = "red"


class Size(IntEnum):
    LARGE = 3


class Text(str):
    __slots__ = ()


class Killable:
    """A writer on a table `pairs`, and its process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host = WriterProcess(path, spends_reserve=False)
        self.changes: list[ChangedRows] = []
        self.writer = GroupCommitWriter(self.host, on_changes=self.changes.append)

    def insert(self, number: int) -> asyncio.Future[list[Outcome]]:
        """Insert two rows in one transaction."""
        statement = Statement(sql="INSERT INTO pairs (number, side) VALUES (:number, :side)")
        return self.writer.submit([statement._replace(row=(number, side)) for side in ("left", "right")])

    def kill(self) -> None:
        assert self.host.pid is not None
        os.kill(self.host.pid, signal.SIGKILL)

    def stored(self) -> list[tuple[int, str]]:
        with closing(sqlite3.connect(self.path)) as other:
            return other.execute("SELECT number, side FROM pairs ORDER BY number, side").fetchall()


@pytest.fixture
async def killable(tmp_path: Path) -> AsyncIterator[Killable]:
    one = Killable(tmp_path / "b.db")
    await one.writer.open()
    try:
        await one.writer.submit([Statement(sql="CREATE TABLE pairs (number BIGINT, side TEXT)")])
        yield one
    finally:
        await one.writer.close()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def children() -> list[int]:
    """Return the ids of this process's children, zombies included."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def writer_child() -> int:
    """Return the id of the writer: servers of other tests may be children of this process, too."""
    (pid,) = [pid for pid in children() if b"storage.sql.writer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid


def kill_and_wait(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # without reaping it


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Check that no file descriptor and no child process is left."""
    await asyncio.to_thread(int)  # its thread stays
    gc.collect()  # what earlier tests have left
    descriptors, others = len(os.listdir("/proc/self/fd")), set(children())
    yield
    async with asyncio.timeout(5):
        while len(os.listdir("/proc/self/fd")) > descriptors or set(children()) - others:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_values_of_other_classes_are_stored_like_their_base(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "b.db", own_process=True) as database:
        await database.execute("CREATE TABLE t (a, b, c, d, e)")
        await database.execute(
            "INSERT INTO t VALUES (:a, :b, :c, :d, :e)",
            a=Color.RED,
            b=Size.LARGE,
            c=True,
            d=bytearray(b"x"),
            e="\ud800"[:0],
        )
        await database.transact(
            Statement("INSERT INTO t VALUES (:a, :b, :c, :d, :e)", row=(Color.RED, 2.5, None, b"", "é"))
        )
        await database.transact(Statement(Text("INSERT INTO t (a) VALUES (:red)"), {Color.RED: "by another name"}))
        rows = await database.fetch("SELECT a, b, c, d, e FROM t")
    assert [tuple(row.values()) for row in rows] == [
        ("red", 3, 1, b"x", ""),
        ("red", 2.5, None, b"", "é"),
        ("by another name", None, None, None, None),
    ]


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
@pytest.mark.parametrize(
    ("sql", "value", "kind"),
    [
        ("INSERT INTO t VALUES (:n)", 1, sqlite3.IntegrityError),
        ("INSERT INTO t VALUES (:n)", 2**70, OverflowError),
        ("INSERT INTO t VALUES (:n)", object(), sqlite3.Error),
        ("INSERT INTO t VALUES (:n)", "\ud800", ValueError),
        ("INSERT INTO missing VALUES (:n)", 1, sqlite3.OperationalError),
        ("UPDATE t SET n = n WHERE n = :n", 2, Stale),
    ],
)
async def test_errors_are_those_of_a_thread(
    tmp_path: Path, own_process: bool, sql: str, value: Any, kind: type[Exception]
) -> None:
    async with SqliteDatabase(tmp_path / "b.db", own_process=own_process) as database:
        await database.execute("CREATE TABLE t (n BIGINT UNIQUE)")
        await database.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(Exception) as raised:
            await database.transact(Statement(sql, {"n": value}, must_change=True))
        error = raised.value.__cause__ or raised.value
    assert isinstance(error, kind)
    if isinstance(error, sqlite3.IntegrityError):
        assert error.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE"
        assert error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_UNIQUE


async def test_close_writes_what_cancelled_callers_have_handed_in_and_leaves_nothing(tmp_path: Path) -> None:
    async with nothing_left(), SqliteDatabase(tmp_path / "b.db", own_process=True) as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        callers = [asyncio.create_task(database.execute("INSERT INTO t VALUES (:n)", n=n)) for n in range(600)]
        await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
    with closing(sqlite3.connect(tmp_path / "b.db")) as other:
        assert other.execute("SELECT count(*) FROM t").fetchone() == (600,)
    assert not (tmp_path / "b.db-wal").exists(), "the last connection has copied the log"


async def test_close_writes_what_waits_while_the_writer_dies(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "b.db", own_process=True) as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        running = asyncio.create_task(database.transact(Statement(SLOW)))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(database.execute("INSERT INTO t VALUES (:n)", n=n)) for n in range(3)]
        await asyncio.sleep(0)
        kill_and_wait(writer_child())  # so the readers' connections are the last ones
    with pytest.raises(StorageError, match="unknown whether this was stored"):
        await running
    assert await asyncio.gather(*waiting) == [1, 1, 1]


async def test_writer_killed_in_the_middle_of_groups_loses_no_acknowledged_write_and_halves_none(
    killable: Killable,
) -> None:
    acknowledged, failed, numbers = list[int](), list[int](), iter(range(100_000))
    killed = asyncio.Event()

    async def write() -> None:
        while not killed.is_set():
            number = next(numbers)
            try:
                await killable.insert(number)
            except StorageError as error:
                assert "unknown whether this was stored" in str(error)
                failed.append(number)
            else:
                acknowledged.append(number)

    async def wait_for_writes(count: int) -> None:
        enough = len(acknowledged) + count
        await eventually(lambda: len(acknowledged) > enough)

    async def kill() -> None:
        for _ in range(4):
            await wait_for_writes(500)  # so it is not killed while it starts
            killable.kill()
        await wait_for_writes(500)
        killed.set()

    await asyncio.gather(kill(), *(write() for _ in range(50)))
    stored = killable.stored()
    lefts = [number for number, side in stored if side == "left"]
    assert lefts == [number for number, side in stored if side == "right"]
    assert set(acknowledged) <= set(lefts) <= {*acknowledged, *failed}
    assert len(lefts) == len(set(lefts))
    assert failed
    assert max(acknowledged) > max(failed), "a new writer goes on"


async def test_writes_that_wait_while_the_writer_dies_are_written_by_the_next_one(killable: Killable) -> None:
    running = killable.writer.submit([Statement(SLOW)])
    await asyncio.sleep(0.05)
    waiting = [killable.insert(number) for number in range(3)]
    killable.kill()
    with pytest.raises(StorageError, match="unknown whether this was stored"):
        await running
    await asyncio.gather(*waiting)
    assert len(killable.stored()) == 6
    assert [one.is_foreign for one in killable.changes].count(True) >= 2, "at the loss, and at the next start"


async def test_writer_that_dies_while_it_starts_is_started_once_more(killable: Killable) -> None:
    killable.kill()
    await eventually(lambda: killable.host.pid is None)
    waiting = killable.insert(1)
    await eventually(lambda: killable.host.pid is not None)
    killable.kill()
    await waiting
    assert killable.stored() == [(1, "left"), (1, "right")]


async def test_writer_whose_parent_is_gone_does_not_commit_what_it_has_begun(killable: Killable) -> None:
    """A restarted broker would have a second writer beside it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "storage.sql.writer"]
        process = await asyncio.create_subprocess_exec(*command, stdin=theirs.fileno(), cwd=ROOT)
        ours.sendall(b"".join(frame((Opening(str(killable.path), False, None, ()).encode(),))))
        await asyncio.to_thread(ours.recv, 1)  # it has opened the database
        group = [[Statement(SLOW), Statement("INSERT INTO pairs VALUES (1, 'left')")]]
        ours.sendall(b"".join(frame((encode_group(group),))))
        await asyncio.sleep(0.2)
    async with asyncio.timeout(3):
        await process.wait()
    await killable.insert(2)
    assert killable.stored() == [(2, "left"), (2, "right")]


async def test_next_writer_records_changed_rows_too(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "b.db", own_process=True) as database:
        await database.execute("CREATE TABLE items (id TEXT PRIMARY KEY, name TEXT)")
        await database.execute("INSERT INTO items VALUES ('a', 'x')")
        changes = await database.track_changes("items", but=())
        assert changes is not None
        seen: list[str] = []
        changes.subscribe(seen.extend)
        before = changes.epoch()
        os.kill(writer_child(), signal.SIGKILL)
        with suppress(StorageError):
            await database.execute("UPDATE items SET name = 'y'")
        with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("UPDATE items SET name = 'foreign'")
        await database.execute("UPDATE items SET name = 'z'")
        assert changes.epoch() > before
        assert seen[-1:] == ["a"]


async def test_next_writer_does_not_open_another_file(killable: Killable) -> None:
    await killable.insert(1)
    killable.kill()
    killable.path.rename(killable.path.with_name("away.db"))
    with suppress(StorageError):
        await killable.insert(2)
    for _ in range(2):
        with pytest.raises(DatabaseReplaced):
            await killable.insert(3)
    assert not killable.path.exists()
    killable.path.with_name("away.db").rename(killable.path)
    await killable.insert(4)
    assert {number for number, _ in killable.stored()} >= {1, 4}


async def test_writer_that_cannot_be_started_fails_the_writes_that_wait_and_the_next_write_tries_again(
    killable: Killable, monkeypatch: pytest.MonkeyPatch
) -> None:
    killable.kill()
    with pytest.raises(StorageError, match="unknown"):
        await killable.insert(1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        for _ in range(2):
            results = await asyncio.gather(*map(killable.insert, range(2, 5)), return_exceptions=True)
            assert {type(one) for one in results} == {StorageError}
            assert "memory or the number of processes" in str(results[0])
    await killable.insert(6)
    assert {number for number, _ in killable.stored()} - {1} == {6}


async def test_writer_that_ends_at_its_start_is_an_error_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nothing_left():
        monkeypatch.setattr(sys, "executable", "/bin/true")
        with pytest.raises(StorageError, match="does not start"):
            async with SqliteDatabase(tmp_path / "b.db", own_process=True):
                pytest.fail("not reached")
