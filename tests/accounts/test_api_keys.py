"""API keys: made once, found by every process, refused when they expired, and limited per user; on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.accounts.api_keys import NewApiKey
from broker.accounts.users import UserChanges
from broker.errors import ApiError
from broker.principal import Principal
from broker.services import Services
from broker.settings import Settings
from storage.accounts.users import User
from storage.conversations.conversations import StoredConversation
from storage.errors import StorageFull
from storage.ids import new_conversation_id, new_user_id
from storage.sql.database import Database, Outcome, Statement
from storage.sql.scope import EVERYTHING, Scope
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from storage.states import TaskState
from tests.accounts.opening import Processes, open_processes
from tests.integration.storage.test_tasks import a_task
from tests.support.brokers import still
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

DAY = 86_400.0


@pytest.fixture(params=["sqlite", "postgres"])
async def processes(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Processes]:
    settings: dict[str, Any] = {}
    if request.param == "postgres":
        settings["database_url"] = await request.getfixturevalue("postgres").fresh()
    async with open_processes(tmp_path, clock, **settings) as opened:
        yield opened


async def add_user(services: Services, name: str, **changes: Any) -> User:
    """Add a user without a password."""
    values = {"name": name, "name_key": name.lower(), "password_hash": "", "created_at": 1.0, "updated_at": 1.0}
    user = User(id=new_user_id(), **{**values, **changes})
    await services.database.transact(services.tables.users.insert_user(user))
    return user


async def find(services: Services, key: NewApiKey) -> Principal | None:
    return await services.credentials.find_by_bearer(key.secret)


async def refused(trying: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await trying
    return caught.value


async def test_key_stands_for_its_user_until_it_expires_or_is_revoked(processes: Processes, clock: ManualClock) -> None:
    one, two = processes.one, processes.two
    ada, boss = await add_user(one, "Ada"), await add_user(one, "Boss", is_admin=True)
    own = await one.key_service.add(" laptop ", user=ada, expires_days=3)
    of_boss = await one.key_service.add("laptop", user=boss)
    of_nobody = await one.key_service.add("laptop", user=None)
    assert own.secret.startswith(own.listed.key.prefix) and own.listed.key.name == "laptop"
    assert await find(two, own) == Principal(owner=ada.id, is_admin=False, name="Ada")
    assert await find(two, of_boss) == Principal(owner=boss.id, is_admin=True, name="Boss")
    alone = of_nobody.listed.key.id
    assert await find(two, of_nobody) == Principal(owner=alone, is_admin=False, name="laptop")

    stored = [
        dict(row) for table in ("api_keys", "users") for row in await one.database.fetch(f"SELECT * FROM {table}")
    ]
    assert not any(key.secret[len("nbk_") :] in str(stored) for key in (own, of_boss, of_nobody))

    clock.advance(3 * DAY - 1)
    assert await find(one, own) is not None
    clock.advance(1)
    assert await find(one, own) is None and await find(two, own) is None

    error = await refused(two.key_service.revoke("laptop", EVERYTHING))
    assert (error.code, alone in error.message) == ("conflict", True), "three owners have a key of this name"
    assert (await refused(two.key_service.revoke(alone, Scope(owner=ada.id)))).code == "not_found"
    await two.key_service.revoke(alone, EVERYTHING)
    await two.key_service.revoke("laptop", Scope(owner=boss.id))
    assert await find(one, of_nobody) is None and await find(one, of_boss) is None
    assert [key.key.id for key in await one.key_service.list_newest(EVERYTHING, limit=9, before=None)] == [
        own.listed.key.id
    ], "the expired one is still shown"


async def test_key_of_a_disabled_user_is_refused_and_that_of_a_deleted_one_is_gone(processes: Processes) -> None:
    one, two = processes.one, processes.two
    ada = await add_user(one, "Ada")
    key = await one.key_service.add("laptop", user=ada)
    await one.users.change(ada.id, UserChanges(is_disabled=True))
    assert "disabled" in (await refused(find(two, key))).message
    (unused,) = await one.key_service.list_newest(EVERYTHING, limit=1, before=None)
    assert unused.key.last_used_at is None, "a refused request is no use"
    await one.users.change(ada.id, UserChanges(is_disabled=False))
    assert await find(two, key) is not None
    await one.database.transact(one.tables.users.delete_user(ada.id))  # the row of the key alone is left
    assert await find(two, key) is None
    assert (await refused(two.key_service.add("phone", user=ada))).code == "conflict"


async def test_names_of_one_owner_differ_and_keys_of_one_user_are_limited(processes: Processes) -> None:
    """Also when two processes make them at the same moment."""
    one, two = processes.one, processes.two
    ada = await add_user(one, "Ada")
    both = [replace(services.key_service, max_per_user=4) for services in (one, two)]

    async def add_all(names: Sequence[str], user: User | None) -> int:
        adding = [both[number % 2].add(name, user=user) for number, name in enumerate(names)]
        outcomes = await asyncio.gather(*adding, return_exceptions=True)
        assert all(isinstance(one, NewApiKey) or getattr(one, "code", "") == "conflict" for one in outcomes), outcomes
        return sum(isinstance(one, NewApiKey) for one in outcomes)

    assert await add_all(["laptop"] * 4, ada) == 1
    assert await add_all(["laptop"] * 4, None) == 1
    assert "name laptop" in (await refused(both[0].add("laptop", user=None))).message
    made = await one.database.fetch("SELECT count(*) AS n FROM api_keys WHERE owner = :me", me=ada.id)
    assert made[0]["n"] == 1
    assert await add_all([f"key {number}" for number in range(8)], ada) == 3
    assert "at most 4 keys" in (await refused(both[0].add("one more", user=ada))).message
    for name in ("", " ", "x" * 65, "a\nb", "a/b", "a\u202eb", f"key_{'0' * 24}"):
        assert (await refused(both[0].add(name, user=ada))).code == "invalid_request", name


class Watched(SqliteDatabase):
    """A database that counts the writes of last uses, tried and done, and refuses them while its disk is full."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.tried, self.awaited, self.written, self.is_full = 0, 1, 0, False

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        if not any("last_used_at" in statement.sql and "UPDATE" in statement.sql for statement in statements):
            return await super().transact(*statements, wake=wake)
        self.tried += 1
        while self.tried < self.awaited:  # noqa: ASYNC110  # all have read the row before one of them writes
            await asyncio.sleep(0)
        if self.is_full:
            raise StorageFull("the disk of the database is full: free some space")
        outcomes = await super().transact(*statements, wake=wake)
        self.written += outcomes[0].count
        return outcomes


async def test_last_use_is_written_once_a_minute_and_a_full_disk_refuses_no_key(
    tmp_path: Path, clock: ManualClock
) -> None:
    databases: list[Watched] = []

    def open_watched(settings: Settings) -> AbstractAsyncContextManager[Database]:
        databases.append(Watched(sqlite_path(settings.database)))
        return databases[-1]

    async with still(tmp_path, clock, open_database=open_watched) as services:
        (database,) = databases
        key = await services.key_service.add("laptop", user=None)

        async def use(times: int) -> tuple[int, float | None]:
            """Return the writes so far, and the last use that is stored, after so many requests at once."""
            found = await asyncio.gather(*(find(services, key) for _ in range(times)))
            assert all(found)
            (listed,) = await services.key_service.list_newest(EVERYTHING, limit=1, before=None)
            return database.written, listed.key.last_used_at

        first = clock.now()
        assert await use(1) == (1, first)
        clock.advance(59)
        assert await use(3) == (1, first)
        clock.advance(1)
        database.tried, database.awaited = 0, 3
        assert await use(3) == (2, first + 60)
        database.tried, database.awaited, database.is_full = 0, 1, True
        clock.advance(60)
        for _ in range(3):
            assert (await use(1), database.tried) == ((2, first + 60), 1), "one try a minute"
        database.is_full = False
        clock.advance(60)
        assert await use(1) == (3, first + 180)


async def test_what_a_revoked_key_without_a_user_pinned_goes_with_retention(processes: Processes) -> None:
    """Nobody is left who could unpin it. What users, other keys and the operator pinned stays."""
    one, tables = processes.one, processes.one.tables
    gone, kept = [await one.key_service.add(name, user=None) for name in ("gone", "kept")]
    owners = [gone.listed.key.id, kept.listed.key.id, (await add_user(one, "Ada")).id, "house:local"]
    for number, owner in enumerate(owners):
        task = a_task(number, caller=owner, state=TaskState.SUCCEEDED, ended_at=50.0, due_at=9e9, pinned_at=60.0)
        await one.database.transact(tables.tasks.insert_task(task))
        talk = StoredConversation(
            id=new_conversation_id(1.0), owner=owner, title="", turns=0, created_at=1.0, updated_at=1.0
        )
        assert await tables.conversations.insert_if_fewer(talk, 9)
        await one.database.transact(tables.conversations.pin(talk, 60.0, limit=None))
    await one.key_service.revoke("gone", EVERYTHING)
    await one.worker.retention.delete_leftovers()
    for table, owner_column in (("tasks", "caller"), ("conversations", "owner")):
        rows = await one.database.fetch(f"SELECT {owner_column} AS owner FROM {table} WHERE pinned_at IS NOT NULL")
        assert {row["owner"] for row in rows} == set(owners[1:])
    (row,) = await one.database.fetch("SELECT due_at FROM tasks WHERE pinned_at IS NULL")
    assert row["due_at"] == 50.0 + one.worker.retention.policy.retention_seconds
