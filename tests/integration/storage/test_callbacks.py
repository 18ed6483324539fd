"""The rows of the callback inbox: filtered pages, and count_missing_callbacks callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from storage.attempts import Attempt
from storage.callbacks import CallbackRecord, Callbacks, StoredCallback
from storage.sql.migrate import upgrade_schema
from storage.sql.postgres import PostgresDatabase
from storage.sql.sqlite import SqliteDatabase
from tests.contracts.databases import DATABASES
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio

NOW = 1_000_000.0


@pytest.fixture(params=DATABASES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with await DATABASES[request.param](request, tmp_path) as opened:
        await upgrade_schema(opened, NOW)
        yield opened


def a_callback(number: int = 1, **changes: Any) -> StoredCallback:
    values: dict[str, Any] = {
        "id": f"callback_{number:024x}",
        "provider": "kie",
        "task_id": f"task_{number:043x}",
        "attempt": 1,
        "verification": "accept",
        "status": 200,
        "reason": "its token is right",
        "headers": "{}",
        "query": "{}",
        "body": '{"text": "фоx"}',
        "evidence": "{}",
        "received_at": NOW + number,
    }
    return StoredCallback(**{**values, **changes})


async def store(database: Any, *callbacks: StoredCallback) -> Callbacks:
    inbox = Callbacks(database)
    await database.transact(*(inbox.insert_callback(callback) for callback in callbacks))
    return inbox


async def store_unproven(database: Any, *callbacks: StoredCallback, max_bytes: int) -> None:
    for callback in callbacks:
        await database.transact(*Callbacks(database).insert_unproven(callback, max_bytes=max_bytes))


async def stored_numbers(database: Any) -> set[int]:
    return {int(row["id"].removeprefix("callback_"), 16) for row in await database.fetch("SELECT id FROM callbacks")}


async def store_ended_attempt(database: Any, number: int = 1, **changes: Any) -> None:
    """Store an attempt that ended."""
    values: dict[str, Any] = {
        "task_id": f"task_{number:043x}",
        "number": 1,
        "provider": "kie",
        "key_id": "default",
        "sent_at": NOW,
        "ended_at": NOW + 10,
        "learned_by": "check",
    }
    row = vars(Attempt(**{**values, **changes}))
    columns, names = ", ".join(row), ", ".join(f":{name}" for name in row)
    await database.execute(f"INSERT INTO attempts ({columns}) VALUES ({names})", **row)


async def count_missing_callbacks(database: Any, limit: int = 100) -> dict[str, int]:
    return await Callbacks(database).count_missing(since=NOW, until=NOW + 100, limit=limit)


async def test_callback_is_read_back_as_stored(database: Any) -> None:
    callback = a_callback(job_ended_at=NOW - 1, replay_of="callback_0")
    inbox = await store(database, callback)
    assert await inbox.get(callback.id) == callback
    (line,) = await inbox.list_newest(limit=5)
    assert line == CallbackRecord(**{one.name: getattr(callback, one.name) for one in fields(CallbackRecord)})
    assert await inbox.get("callback_2") is None


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ({}, range(60)),
        ({"task_id": "task_a"}, range(0, 60, 3)),
        ({"verification": "reject"}, range(0, 60, 4)),
        ({"provider": "fal"}, range(0, 60, 5)),
        ({"task_id": "task_a", "verification": "reject", "provider": "fal"}, [0]),
    ],
    ids=str,
)
async def test_pages_have_every_callback_once(database: Any, only: dict[str, str], expected: Any) -> None:
    callbacks = [
        a_callback(
            number,
            task_id="task_a" if number % 3 == 0 else None,
            verification="reject" if number % 4 == 0 else "accept",
            provider="fal" if number % 5 == 0 else "kie",
            received_at=NOW + number // 7,
        )
        for number in range(60)
    ]
    inbox = await store(database, *callbacks)
    seen: list[CallbackRecord] = []
    before: tuple[float, str] | None = None
    while page := await inbox.list_newest(limit=7, before=before, **only):
        seen += page
        before = (page[-1].received_at, page[-1].id)
    assert [entry.id for entry in seen] == [callbacks[number].id for number in reversed(expected)]


async def test_end_found_by_a_check_has_a_missing_callback(database: Any) -> None:
    await store_ended_attempt(database)
    assert await count_missing_callbacks(database) == {"kie": 1}


async def test_late_callback_is_not_missing(database: Any) -> None:
    await store_ended_attempt(database)
    inbox = await store(database, a_callback(received_at=NOW + 50))
    assert await inbox.has_accepted(a_callback().task_id or "", 1)
    assert await count_missing_callbacks(database) == {}


@pytest.mark.parametrize(
    "changes", [{"verification": "recheck"}, {"attempt": 2}, {"attempt": None}, {"replay_of": "callback_0"}]
)
async def test_other_callbacks_do_not_count_for_the_attempt(database: Any, changes: dict[str, Any]) -> None:
    """One without proof, one of another attempt, one without an attempt, and a replay."""
    await store_ended_attempt(database)
    inbox = await store(database, a_callback(**changes))
    assert not await inbox.has_accepted(a_callback().task_id or "", 1)
    assert await count_missing_callbacks(database) == {"kie": 1}


@pytest.mark.parametrize(
    "changes",
    [{"learned_by": "callback"}, {"learned_by": "poll"}, {"learned_by": None}, {"ended_at": NOW}, {"ended_at": None}],
    ids=str,
)
async def test_only_recent_ends_found_by_a_check_count(database: Any, changes: dict[str, Any]) -> None:
    await store_ended_attempt(database, **changes)
    assert await count_missing_callbacks(database) == {}


async def test_missing_callbacks_are_counted_by_provider_up_to_a_limit(database: Any) -> None:
    for number in range(8):
        await store_ended_attempt(database, number, provider="fal" if number > 5 else "kie")
    assert await count_missing_callbacks(database) == {"kie": 6, "fal": 2}
    assert sum((await count_missing_callbacks(database, limit=3)).values()) == 3


# -- the limit of callbacks without proof


async def test_oldest_unproven_callbacks_beyond_the_limit_are_deleted(database: Any) -> None:
    """Whatever their order of arrival says by the clock, processed or not."""
    await store(database, a_callback(1), a_callback(2, verification="recheck", status=202))
    strangers = [a_callback(number, verification="recheck", received_at=NOW - number) for number in range(10, 20)]
    size = strangers[0].size_bytes
    await store_unproven(database, *strangers, max_bytes=4 * size)
    assert await stored_numbers(database) == {1, 2, 16, 17, 18, 19}
    await store_unproven(database, a_callback(20, body="x" * size), max_bytes=4 * size)
    assert await stored_numbers(database) == {1, 2, 18, 19, 20}
    stored = await Callbacks(database).get(a_callback(20).id)
    assert stored == a_callback(20, body="x" * size)


async def test_unproven_callback_that_retention_deleted_leaves_room_for_none_older(database: Any) -> None:
    """Deleting needs no correction of a count: the newest bytes up to the limit are kept, before and after."""
    size = a_callback(1).size_bytes
    await store_unproven(database, *(a_callback(n, processed_at=NOW) for n in range(1, 5)), max_bytes=4 * size)
    assert await Callbacks(database).delete_before(NOW + 3, 10) == 2
    await store_unproven(database, *(a_callback(n) for n in range(5, 7)), max_bytes=4 * size)
    assert await stored_numbers(database) == {3, 4, 5, 6}
    await store_unproven(database, a_callback(7), max_bytes=4 * size)
    assert await stored_numbers(database) == {4, 5, 6, 7}


@pytest.mark.parametrize("kind", DATABASES)
async def test_limit_of_unproven_callbacks_holds_over_processes(tmp_path: Path, kind: str, postgres: Postgres) -> None:
    """Four connections insert at the same time, as four processes would; none of them may count for itself."""
    url = await postgres.fresh()
    size = a_callback(1).size_bytes

    async with AsyncExitStack() as stack:
        processes: list[Any] = []
        for _ in range(4):
            opened = SqliteDatabase(tmp_path / "broker.db") if kind == "sqlite" else PostgresDatabase(url)
            processes.append(await stack.enter_async_context(opened))
            await upgrade_schema(processes[-1], NOW)
        numbers = iter(range(100, 180))

        async def insert(database: Any) -> None:
            for number in numbers:
                await store_unproven(database, a_callback(number), max_bytes=10 * size)

        await asyncio.gather(*(insert(process) for process in processes for _ in range(3)))
        await store_unproven(processes[0], a_callback(180), max_bytes=10 * size)
        assert len(await stored_numbers(processes[0])) == 10
