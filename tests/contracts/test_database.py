"""Contract of a database: see `storage.sql.database.Database`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.errors import ForeignTables, Stale, StorageError
from storage.limits.rate_limits import RateLimits
from storage.sql.database import Database, Outcome, Statement
from storage.sql.migrate import load_migrations, upgrade_schema
from storage.sql.rows import insert_row
from tests.contracts.databases import WITH_EACH_WRITER

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left_open")]


@pytest.fixture(params=WITH_EACH_WRITER)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with await WITH_EACH_WRITER[request.param](request, tmp_path) as opened:
        await opened.check()  # by then it is listening, and has notified its listeners once
        await opened.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, n BIGINT NOT NULL, blob DOUBLE PRECISION)")
        yield opened


def insert(key: str, n: int = 0) -> Statement:
    return Statement(sql="INSERT INTO notes (id, n) VALUES (:id, :n)", params={"id": key, "n": n})


def increment(key: str, seen: int) -> Statement:
    return Statement(
        sql="UPDATE notes SET n = n + 1 WHERE id = :id AND n = :seen",
        params={"id": key, "seen": seen},
        must_change=True,
    )


async def test_transaction_is_atomic(database: Database) -> None:
    await database.transact(insert("a"))
    with pytest.raises(Stale):
        await database.transact(insert("b"), increment("a", seen=7))
    assert await database.fetch("SELECT id FROM notes") == [{"id": "a"}]


async def test_failed_statement_undoes_only_its_transaction(database: Database) -> None:
    outcomes = await asyncio.gather(
        database.transact(insert("x"), insert("x")),
        *(database.transact(insert(f"k{i}")) for i in range(50)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], Exception)
    assert not any(isinstance(outcome, BaseException) for outcome in outcomes[1:])
    rows = await database.fetch("SELECT id FROM notes ORDER BY id")
    assert {row["id"] for row in rows} == {f"k{i}" for i in range(50)}


@dataclass(frozen=True, kw_only=True)
class Note:
    id: str
    n: int


async def test_equal_inserts_of_many_writers_hold_a_limit(database: Database) -> None:
    limits = RateLimits(database)
    await database.execute("CREATE TABLE rate_limits (caller TEXT PRIMARY KEY, started_at BIGINT, used BIGINT)")

    def write(number: int) -> Awaitable[list[Outcome]]:
        used = limits.add_usage("caller", 1, limit=40, now=100)
        return database.transact(used, insert_row("notes", Note(id=f"k{number}", n=number)))

    first = await asyncio.gather(*map(write, range(30)))
    assert [[one.count for one in outcomes] for outcomes in first] == [[1, 1]] * 30
    others = await asyncio.gather(*map(write, range(30, 60)), return_exceptions=True)
    assert Counter(map(type, others)) == {list: 10, Stale: 20}
    written = [number for number, outcome in enumerate([*first, *others]) if isinstance(outcome, list)]
    assert [row["n"] for row in await database.fetch("SELECT n FROM notes ORDER BY n")] == written
    usage = await limits.get("caller")
    assert usage is not None and usage.used == 40


async def test_equal_inserts_of_many_writers_fail_alone(database: Database) -> None:
    def write(number: int) -> Awaitable[list[Outcome]]:
        second = Note(id="taken" if number in {3, 17} else f"b{number}", n=number)
        return database.transact(insert_row("notes", Note(id=f"a{number}", n=number)), insert_row("notes", second))

    await database.transact(insert("taken"))
    outcomes = await asyncio.gather(*map(write, range(20)), return_exceptions=True)
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [3, 17]
    rows = await database.fetch("SELECT id, n FROM notes")
    expected = {f"{letter}{number}": number for letter in "ab" for number in range(20) if number not in {3, 17}}
    assert {row["id"]: row["n"] for row in rows} == {"taken": 0, **expected}


async def test_one_of_many_compare_and_set_writes_succeeds(database: Database) -> None:
    await database.transact(insert("a"))
    outcomes = await asyncio.gather(
        *(database.transact(increment("a", seen=0)) for _ in range(20)), return_exceptions=True
    )
    assert sum(isinstance(outcome, Stale) for outcome in outcomes) == 19
    assert await database.fetch_one("SELECT n FROM notes WHERE id = :id", id="a") == {"n": 1}


async def test_outcomes_have_counts_and_returned_rows(database: Database) -> None:
    outcome = await database.transact(
        insert("a", 1),
        insert("b", 2),
        Statement(sql="UPDATE notes SET n = n + 10 RETURNING id, n"),
        Statement(sql="DELETE FROM notes WHERE id = :id", params={"id": "a"}),
    )
    assert sorted((row["id"], row["n"]) for row in outcome[2].rows) == [("a", 11), ("b", 12)]
    assert [o.count for o in outcome] == [1, 1, 2, 1]
    assert await database.execute("DELETE FROM notes WHERE id = :id", id="missing") == 0


async def test_committed_write_is_visible_to_fetch_and_fetch_one(database: Database) -> None:
    for n in range(20):
        await database.transact(insert(f"k{n}", n))
        assert await database.fetch_one("SELECT n FROM notes WHERE id = :id", id=f"k{n}") == {"n": n}
        assert await database.fetch("SELECT n FROM notes WHERE id = :id", id=f"k{n}") == [{"n": n}]


async def test_subscription_is_notified_after_commit_and_not_after_rollback(database: Database) -> None:
    with database.listen("tasks") as subscription:
        with pytest.raises(Stale):
            await database.transact(increment("missing", seen=0), wake=("tasks",))
        assert not await subscription.wait(0)
        await database.transact(insert("a"), wake=("tasks",))
        assert await subscription.wait(5)
        assert not await subscription.wait(0)


async def test_notification_before_wait_is_not_missed(database: Database) -> None:
    with database.listen("tasks") as subscription:
        database.notify("tasks", "other")
        assert await subscription.wait(0)


async def test_only_listeners_of_the_channel_are_notified(database: Database) -> None:
    with database.listen("a") as one, database.listen("a") as two, database.listen("b") as other:
        database.notify("a")
        assert await one.wait(5)
        assert await two.wait(5)
        assert not await other.wait(0)


async def test_canceled_writer_does_not_affect_others(database: Database) -> None:
    writing = asyncio.ensure_future(database.transact(insert("a")))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await database.transact(insert("b"))
    assert await database.fetch_one("SELECT id FROM notes WHERE id = :id", id="b")


async def test_concurrent_upgrades_run_each_migration_once(database: Database) -> None:
    ran = await asyncio.gather(upgrade_schema(database, 1.0), upgrade_schema(database, 1.0))
    assert sorted(m.number for part in ran for m in part) == [m.number for m in load_migrations()]
    assert await upgrade_schema(database, 2.0) == []


async def test_tables_of_another_program_are_refused(database: Database) -> None:
    await database.execute("CREATE TABLE users (id BIGINT PRIMARY KEY, username TEXT)")
    with pytest.raises(ForeignTables, match=r"another program \(users\).*: create an empty database.*POSTGRES_DB"):
        await upgrade_schema(database, 1.0)
    assert await database.fetch("SELECT id, username FROM users") == []
    await database.execute("DROP TABLE users")
    assert len(await upgrade_schema(database, 1.0)) == len(load_migrations())


async def test_closed_database_raises_a_storage_error(database: Database) -> None:
    await database.check()
    await database.close()
    await database.close()
    with pytest.raises(StorageError):
        await database.execute("DELETE FROM notes")


async def test_unstorable_value_does_not_affect_other_writers(database: Database) -> None:
    outcomes = await asyncio.gather(
        *(database.transact(insert(key, n)) for key, n in (("a", 1), ("b", 2**70), ("c", 3))), return_exceptions=True
    )
    assert [isinstance(one, Exception) for one in outcomes] == [False, True, False]
    assert await database.fetch("SELECT id FROM notes ORDER BY id") == [{"id": "a"}, {"id": "c"}]


async def test_description_names_the_database_and_its_size(database: Database) -> None:
    described = await database.describe()
    assert described["database"]
    assert "B" in described["size"]


async def test_error_contains_no_value(database: Database) -> None:
    """Values are prompts, and errors are logged."""
    await database.transact(insert("a secret fox"))
    for statement in (insert("a secret fox"), Statement(sql="SELECT nothing", params={"x": "a secret fox"})):
        with pytest.raises(Exception) as caught:
            await database.transact(statement)
        assert "fox" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("text", ["", "a\0b", "\0", "狐狸 читает 🦊", "it's :name $1 %s", "a\ud7ffb"])
async def test_any_text_can_be_stored_and_found(database: Database, text: str) -> None:
    """Callbacks and prompts contain any text; only NUL may come back as U+FFFD."""
    await database.transact(insert(text))
    rows = await database.fetch("SELECT id FROM notes WHERE id = :id", id=text)
    assert [row["id"].replace("\ufffd", "\0") for row in rows] == [text]
    assert await database.fetch_one("SELECT id FROM notes WHERE id = 'a:b' OR id = :id", id=text)


async def test_text_that_looks_like_a_parameter_is_left_alone(database: Database) -> None:
    await database.transact(
        Statement(sql="INSERT INTO notes (id, n) VALUES (':n ''q'' :id', CAST(:n AS BIGINT))", params={"n": 7})
    )
    assert await database.fetch("SELECT id, n FROM notes") == [{"id": ":n 'q' :id", "n": 7}]
