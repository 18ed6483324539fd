"""Costs of the database: statements, commits and hops per group of writes, round trips, calls per row."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from storage.children.messages import Unframer
from storage.children.parent import Child
from storage.errors import Stale
from storage.sql.database import Outcome, Statement, to_dicts
from storage.sql.migrate import upgrade_schema
from storage.sql.postgres import PostgresDatabase
from storage.sql.rows import encode_once, from_row, new_row, set_clause, to_columns
from storage.sql.sqlite import SqliteDatabase
from storage.sql.writer import group_commit
from storage.sql.writer.connections import WRITER_PRAGMAS, open_connection
from storage.sql.writer.group_commit import GroupCommitWriter
from storage.sql.writer.group_writer import CHECKPOINT_STATEMENTS, MAX_GROUP_STATEMENTS, GroupWriter
from storage.sql.writer.hosts import WriterThread
from storage.sql.writer.thread_turns import ThreadTurns
from storage.states import TaskState
from storage.tasks import Task, Tasks
from tests.support.api import a_task
from tests.support.servers.postgres import Postgres
from tests.support.statements import named_params

pytestmark = pytest.mark.anyio

WRITERS = 64
READY = b"Z\x00\x00\x00\x05"


def insert(number: int) -> Statement:
    return Statement(sql="INSERT INTO t (n) VALUES (:n)", params={"n": number})


def change(number: int, *, must_change: bool = False) -> Statement:
    return Statement(sql="UPDATE t SET n = n + 1000 WHERE n = :n", params={"n": number}, must_change=must_change)


@dataclass
class Traced:
    writer: GroupCommitWriter
    statements: list[str]
    hops: list[object]

    async def write(self, *writes: list[Statement]) -> list[list[Outcome] | BaseException]:
        """Write these transactions, handed in at the same time; count from here."""
        self.statements.clear()
        self.hops.clear()
        return await asyncio.gather(*self._submit(writes), return_exceptions=True)

    def _submit(self, writes: Iterable[list[Statement]]) -> list[asyncio.Future[list[Outcome]]]:
        futures = []
        for statements in writes:
            futures.append(self.writer.submit(statements))
            if len(futures) == 1:
                time.sleep(0.005)  # time in which the thread could begin
        return futures

    def count(self) -> Counter[str]:
        return Counter(statement.split()[0] for statement in self.statements)


@pytest.fixture
def one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """All writes of a turn are one group, however many."""
    monkeypatch.setattr(group_commit, "WRITES_OF_A_HALF_TURN", 10_000)


@pytest.fixture
async def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Traced]:
    """A writer on a table `t`, with the statements that it runs and its calls into the event loop."""
    statements: list[str] = []
    hops: list[object] = []

    def connect() -> sqlite3.Connection:
        connection = open_connection(tmp_path / "b.db", WRITER_PRAGMAS)
        connection.execute("CREATE TABLE t (n BIGINT)")
        connection.set_trace_callback(statements.append)
        return connection

    writer = GroupCommitWriter(WriterThread(GroupWriter(tmp_path / "b.db", connect=connect)))
    await writer.open()
    loop = asyncio.get_running_loop()
    call_in_loop: Callable[..., Any] = loop.call_soon_threadsafe

    def count(*work: Any) -> Any:
        hops.append(work)
        return call_in_loop(*work)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    yield Traced(writer, statements, hops)
    await writer.close()


async def test_single_write_runs_no_statements_but_its_own_and_the_transaction(traced: Traced) -> None:
    await traced.write([insert(1), change(1), change(2)])
    assert traced.count() == {"BEGIN": 1, "PRAGMA": 1, "INSERT": 1, "UPDATE": 2, "COMMIT": 1}
    assert len(traced.hops) == 1


async def test_writer_works_on_the_first_writes_of_a_long_turn_while_the_loop_goes_on(traced: Traced) -> None:
    await traced.write(*([insert(number)] for number in range(WRITERS)))
    assert traced.count() == {"BEGIN": 2, "PRAGMA": 2, "INSERT": WRITERS, "COMMIT": 2}
    firsts = traced.statements[: traced.statements.index("COMMIT")]
    assert len([one for one in firsts if one.startswith("INSERT")]) == group_commit.WRITES_OF_A_HALF_TURN


@pytest.mark.usefixtures("one_group")
async def test_writes_of_one_turn_share_one_commit_and_one_hop_without_savepoints(traced: Traced) -> None:
    await traced.write(*([insert(number)] for number in range(WRITERS)))
    assert traced.count() == {"BEGIN": 1, "PRAGMA": 1, "INSERT": WRITERS, "COMMIT": 1}
    assert len(traced.hops) == 1


@pytest.mark.usefixtures("one_group")
@pytest.mark.parametrize("writes", [8, WRITERS])
async def test_log_is_copied_into_the_database_after_as_many_pages_whatever_the_size_of_groups(
    traced: Traced, writes: int
) -> None:
    """Statements of one group change the same pages; a checkpoint is two fsyncs, during which nothing is written."""
    counted, groups = min(writes, MAX_GROUP_STATEMENTS), 0
    traced.statements.clear()
    while not any("checkpoint" in statement for statement in traced.statements):
        await asyncio.gather(*(traced.writer.submit([insert(number)]) for number in range(writes)))
        groups += 1
        await traced.writer.submit(())  # behind the checkpoint
    assert groups == -(-CHECKPOINT_STATEMENTS // counted)


@pytest.mark.usefixtures("one_group")
async def test_equal_inserts_of_a_group_run_as_few_statements(traced: Traced) -> None:
    one = insert(0)
    writes = [
        [Statement(sql=one.sql, row=(number,)), Statement(sql=one.sql, row=(-number,))] for number in range(1, 40)
    ]
    results = await traced.write(*writes[:35], [change(1)], *writes[35:])
    assert results == [[Outcome(count=1)] * 2] * 35 + [[Outcome(count=1)]] + [[Outcome(count=1)] * 2] * 4
    # per statement of the writes: 16 + 16 + 1 + 1 + 1 rows before the other write, and 4 after it
    assert traced.count() == {"BEGIN": 1, "PRAGMA": 1, "INSERT": 2 * 6, "UPDATE": 1, "COMMIT": 1, **savepoints(2)}


async def test_equal_inserts_cost_one_more_run_if_one_of_them_is_stale(traced: Traced) -> None:
    ignored = "INSERT INTO t (n) VALUES (:n) ON CONFLICT (n) DO NOTHING"
    await traced.write([Statement(sql="CREATE UNIQUE INDEX t_n ON t (n)")])
    one = Statement(sql=ignored, must_change=True)
    results = await traced.write(*([one._replace(row=(min(number, 18),))] for number in range(20)))
    assert [type(result) for result in results] == [list] * 19 + [Stale]
    rolled_back = {"SAVEPOINT": 1, "ROLLBACK": 1, "RELEASE": 1}
    assert traced.count() == {"BEGIN": 1, "PRAGMA": 1, "INSERT": 2 + 20, "COMMIT": 1, **rolled_back}


@pytest.mark.usefixtures("one_group")
async def test_writes_of_one_turn_are_one_message_to_the_writer_and_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, received = list[int](), list[int]()
    send, messages = Child.send, Unframer.messages

    def count_sent(child: Child, *parts: bytes) -> None:
        sent.append(sum(map(len, parts)))
        send(child, *parts)

    def count_received(unframer: Unframer, data: bytes) -> Iterator[bytes]:
        for message in messages(unframer, data):
            received.append(len(message))
            yield message

    async with SqliteDatabase(tmp_path / "b.db", own_process=True) as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        monkeypatch.setattr(Child, "send", count_sent)
        monkeypatch.setattr(Unframer, "messages", count_received)
        text = f"INSERT INTO t (n) VALUES (:n) {' ' * 1000}"
        await asyncio.gather(*(database.transact(Statement(text, row=(n,))) for n in range(WRITERS)))
        assert (len(sent), len(received)) == (1, 1)
        assert sent[0] < 1100 + 40 * WRITERS, "the text is sent once"
        assert received[0] < 20 * WRITERS


def savepoints(count: int) -> dict[str, int]:
    return {"SAVEPOINT": count, "RELEASE": count}


@pytest.mark.parametrize("is_busy", [True, False])
async def test_only_a_loop_without_idle_moments_gives_way_to_a_thread_with_work(
    is_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little processor time it got: beside other programs a busy loop gets little, and keeps the thread out."""
    pauses, loop = list[float](), asyncio.get_running_loop()
    ends = loop.time() + 0.2

    def compute() -> None:
        if loop.time() < ends:
            loop.call_soon(compute)

    monkeypatch.setattr(time, "sleep", pauses.append)
    with ThreadTurns().awaited():
        if is_busy:
            compute()
        await asyncio.sleep(0.25)
    count = len(pauses)
    assert count > 5 if is_busy else count <= 3  # a loop that other programs have delayed may not have slept
    await asyncio.sleep(0.02)
    assert len(pauses) == count


async def test_writes_that_arrive_during_a_commit_share_the_next_one(traced: Traced, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "b.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writes = []
        for number in range(6):
            writes.append(traced.writer.submit([insert(number)]))
            await asyncio.sleep(0.001)
        other.execute("ROLLBACK")
    await asyncio.gather(*writes)
    assert traced.count()["COMMIT"] == 2
    assert len(traced.hops) == 2


@pytest.mark.usefixtures("one_group")
async def test_failed_write_costs_its_group_one_more_run(traced: Traced) -> None:
    writes = [[insert(number)] for number in range(WRITERS)]
    results = await traced.write(*writes, [insert(-1), change(-2, must_change=True)])
    assert [type(result) for result in results] == [list] * WRITERS + [Stale]
    assert traced.count()["COMMIT"] == 1
    assert traced.count()["INSERT"] <= 2 * (WRITERS + 1)
    assert len(traced.hops) == 1


@pytest.mark.usefixtures("one_group")
async def test_write_that_fails_with_its_first_statement_costs_its_group_nothing(traced: Traced) -> None:
    """It is how a decision on a row ends that another one has changed: two of a life that come at the same time."""
    writes = [[insert(number)] for number in range(WRITERS)]
    results = await traced.write(*writes, [change(-2, must_change=True), insert(-1)])
    assert [type(result) for result in results] == [list] * WRITERS + [Stale]
    assert traced.count() == {"BEGIN": 1, "PRAGMA": 1, "INSERT": WRITERS, "UPDATE": 1, "COMMIT": 1}


async def test_texts_are_built_once_per_shape() -> None:
    """The same object, so that the drivers' caches of statements find it at once."""
    tasks = Tasks(SqliteDatabase(Path("unused.db")))
    assert tasks.insert_task(a_task(1.0)).sql is tasks.insert_task(a_task(1.0)).sql
    assert set_clause({"state": 1, "due_at": 2}) is set_clause({"state": 3, "due_at": 4})
    changing = [tasks.update_task(a_task(1.0), state=state, due_at=2.0) for state in TaskState]
    assert changing[0].sql is changing[1].sql


def test_row_is_read_and_written_with_few_calls() -> None:
    """No function per row and column: a task has some sixty."""
    task = a_task(1.0)
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    columns = to_columns(vars(task))
    names = ", ".join(f':{name} AS "{name}"' for name in columns)
    rows = connection.execute(f"SELECT {names}", columns).fetchall()
    connection.close()
    from_row(Task, to_dicts(rows)[0])
    reading = list_calls(lambda: [from_row(Task, row) for row in to_dicts(rows)])
    assert len(reading) <= 25
    assert "__init__" not in reading
    assert len(list_calls(lambda: to_columns(vars(task)))) <= 45
    assert [from_row(Task, row) for row in to_dicts(rows)] == [task]


def test_new_row_is_made_and_inserted_with_few_calls() -> None:
    usual = a_task(1.0, error_retryable=True, tokens={"input": 1}, candidates=("kie",))
    given = {name: value for name, value in vars(usual).items() if value != getattr(Task, name, None)}
    given["candidates"] = encode_once(given["candidates"])
    tasks = Tasks(SqliteDatabase(Path("unused.db")))
    made = new_row(Task, given)
    assert made == usual
    statement = tasks.insert_task(made)
    assert statement.row == tasks.insert_task(usual).row == tuple(to_columns(vars(usual)).values())
    assert {type(value) for value in statement.row} <= {str, int, float, type(None)}
    assert "__init__" not in list_calls(lambda: new_row(Task, given))
    assert len(list_calls(lambda: tasks.insert_task(made))) <= 7


def test_columns_that_later_steps_write_are_not_bound_for_new_tasks() -> None:
    """To bind a value takes as long as to store it, and the event loop waits while rows are inserted."""
    tasks = Tasks(SqliteDatabase(Path("unused.db")))
    queued, ended = a_task(1.0, state=TaskState.QUEUED, attempt=0, expects_callback=False), a_task(1.0, billed="yes")
    submitted = replace(queued, leased_by="me", state=TaskState.SUBMITTING, attempt=1, version=2)
    assert [len(tasks.insert_task(task).row) for task in (queued, submitted, ended)] == [26, 34, 53]


@pytest.mark.parametrize("changes", [{"id": None}, {"prompts": "a red bicycle"}])
def test_new_row_has_the_fields_of_its_class(changes: dict[str, str | None]) -> None:
    values = {name: value for name, value in {**vars(a_task(1.0)), **changes}.items() if value is not None}
    with pytest.raises(TypeError, match="the fields of a Task"):
        new_row(Task, values)


def list_calls(work: Callable[[], object]) -> list[str]:
    """Return the names of the functions written in Python that are called."""
    calls: list[str] = []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


async def test_writes_and_reads_end_while_the_loop_is_never_idle(tmp_path: Path) -> None:
    """Without turns the thread that reads gets none for as long as another processor is free."""
    turns = 0

    async def never_idle() -> None:
        nonlocal turns
        while True:
            turns += 1
            until = time.thread_time() + 0.0003
            while time.thread_time() < until:
                pass
            await asyncio.sleep(0)

    async with SqliteDatabase(tmp_path / "b.db", own_process=True) as database:
        await database.execute("CREATE TABLE t (n BIGINT)")
        busy = asyncio.create_task(never_idle())
        for number in range(3):
            await database.transact(insert(number))
        assert len(await database.fetch("SELECT n FROM t")) == 3
        busy.cancel()
    assert turns < 2000


# -- Postgres


@dataclass
class Wire:
    """A proxy to Postgres. round_trips: how often the server was ready for the next message."""

    url: str
    round_trips: int = 0
    connections: int = 0


@asynccontextmanager
async def counted(postgres: Postgres) -> AsyncIterator[Wire]:
    url = await postgres.fresh()
    wire = Wire(url)
    lines: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            wire.round_trips += data.count(READY)
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", postgres.port)
        lines.update(asyncio.create_task(way) for way in (relay(reader, back), relay(there, writer)))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        wire.url = url.replace(str(postgres.port), str(server.sockets[0].getsockname()[1]))
        yield wire
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)


async def test_transaction_on_postgres_takes_a_round_trip_per_statement_and_no_new_connection(
    postgres: Postgres,
) -> None:
    async with counted(postgres) as wire, PostgresDatabase(wire.url, connections=2) as database:
        await database.check()  # by then it is listening
        await database.execute("CREATE TABLE t (n BIGINT)")
        trips: dict[str, int] = {}
        works: dict[str, Callable[[], Awaitable[object]]] = {
            "read": lambda: database.fetch_one("SELECT n FROM t WHERE n = :n", n=1),
            "one statement": lambda: database.transact(insert(1)),
            "three statements": lambda: database.transact(insert(1), change(1), change(2)),
        }
        for name, work in works.items():
            await work()  # prepares the statements
            before = wire.round_trips
            await work()
            trips[name] = wire.round_trips - before
        connections = wire.connections
        for _ in range(20):
            await database.transact(insert(1))
        assert wire.connections == connections
    assert trips == {"read": 1, "one statement": 1, "three statements": 5}


async def test_no_change_of_a_state_makes_a_temporary_table(tmp_path: Path) -> None:
    """A partial index with three values after IN makes one in each statement, at a quarter of the statement's cost."""
    async with SqliteDatabase(tmp_path / "broker.db") as database:
        await upgrade_schema(database, 0.0)
        tasks = Tasks(database)
        for statement in (tasks.insert_task(a_task(1.0)), tasks.update_task(a_task(1.0), state=TaskState.FETCHING)):
            program = await database.fetch(f"EXPLAIN {statement.sql}", **named_params(statement))
            assert not [step for step in program if step["opcode"] == "OpenEphemeral"]
