"""Logins, refresh tokens and what ends sessions, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from anyio import CapacityLimiter

from broker.accounts.credentials import IDLE_SECONDS
from broker.accounts.logins import Login
from broker.accounts.passwords import HASH_THREADS
from broker.accounts.users import UserChanges
from broker.errors import ApiError
from storage.accounts.login_attempts import CLIENT_KEPT_SECONDS
from storage.accounts.users import User
from tests.accounts.opening import HOME, PASSWORD, QUICK, Processes, open_processes, outcome_of
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgres"])
async def processes(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Processes]:
    settings: dict[str, Any] = {}
    if request.param == "postgres":
        settings["database_url"] = await request.getfixturevalue("postgres").fresh()
    async with open_processes(tmp_path, clock, hashing=QUICK, **settings) as opened:
        yield opened


async def add_user(processes: Processes, name: str = "Ada", **values: Any) -> User:
    return await processes.one.users.add(name, PASSWORD, **values)


async def is_alive(processes: Processes, login: Login) -> bool:
    """Return whether the secret of a login still stands for its user, in another process."""
    credentials = processes.two.credentials
    try:
        if login.tokens is not None:
            return await credentials.find_by_bearer(login.tokens.access) is not None
        return await credentials.find_by_cookie(login.cookie) is not None
    except ApiError:
        return False


async def refused(trying: Any) -> str:
    with pytest.raises(ApiError) as caught:
        await trying
    return caught.value.code


async def test_user_name_counts_before_an_email_address(processes: Processes, clock: ManualClock) -> None:
    """Nobody is locked out by another who registers with the same address; of those, the oldest account counts."""
    users = {}
    for name, email in (("Mallory", "ada@example.com"), ("ada@example.com", None), ("Bob", "Bob@Example.com")):
        users[name] = await add_user(processes, name, email=email)
        clock.advance(1)
    await add_user(processes, "Eve", email="bob@example.com")
    for typed, name in ((" ada@example.COM ", "ada@example.com"), ("bob@example.com", "Bob"), ("mallory", "Mallory")):
        login = await processes.one.logins.log_in_with_cookie(typed, PASSWORD, HOME)
        assert login.user.id == users[name].id, typed


async def test_refresh_rotates_and_reuse_revokes_the_family(processes: Processes, clock: ManualClock) -> None:
    await add_user(processes)
    login = await processes.one.logins.log_in_with_tokens("ada", PASSWORD, HOME)
    other = await processes.one.logins.log_in_with_tokens("ada", PASSWORD, HOME)
    assert login.tokens is not None
    second = await processes.one.logins.refresh(login.tokens.refresh)
    assert second.tokens is not None and second.session.id == login.session.id
    assert not await is_alive(processes, login) and await is_alive(processes, second)
    assert await refused(processes.two.logins.refresh(login.tokens.access)) == "unauthorized"
    assert await refused(processes.two.logins.refresh(login.tokens.refresh)) == "unauthorized"
    assert not await is_alive(processes, second)
    assert await refused(processes.one.logins.refresh(second.tokens.refresh)) == "unauthorized"
    assert await is_alive(processes, other)

    # two at the same moment, in two processes: one gets tokens, and both families end
    assert other.tokens is not None
    tries = [one.logins.refresh(other.tokens.refresh) for one in (processes.one, processes.two)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(one).__name__ for one in outcomes) == ["ApiError", "Login"]
    assert await processes.one.logins.list_sessions(login.user.id) == []


async def test_sessions_end_by_themselves_and_are_deleted(processes: Processes, clock: ManualClock) -> None:
    """A cookie after a day without use, and after 30 days of use; tokens when nobody refreshes them."""
    logins, user = processes.one.logins, await add_user(processes)
    idle = await logins.log_in_with_cookie("ada", PASSWORD, HOME)
    used = await logins.log_in_with_cookie("ada", PASSWORD, HOME)
    tokens = await logins.log_in_with_tokens("ada", PASSWORD, HOME)
    clock.advance(IDLE_SECONDS - 1)
    assert await is_alive(processes, used) and not await is_alive(processes, tokens)  # the access token
    clock.advance(1)
    assert [await is_alive(processes, one) for one in (idle, used)] == [False, True]
    assert {one.id for one in await logins.list_sessions(user.id)} == {used.session.id, tokens.session.id}
    assert [one.id for one in await replace(logins, max_listed=1).list_sessions(user.id)] == [used.session.id]
    clock.advance(6 * IDLE_SECONDS)
    assert tokens.tokens is not None
    assert await refused(logins.refresh(tokens.tokens.refresh)) == "unauthorized"
    again = await logins.log_in_with_cookie("ada", PASSWORD, HOME)
    for _ in range(30):
        assert await is_alive(processes, again)
        clock.advance(IDLE_SECONDS - 1)
    assert await is_alive(processes, again)
    clock.advance(30)
    assert not await is_alive(processes, again)
    assert await logins.list_sessions(user.id) == []

    await processes.one.worker.retention.delete_leftovers()
    for table in ("sessions", "session_secrets", "login_attempts"):
        assert await processes.one.database.fetch(f"SELECT * FROM {table}") == [], table
    assert len(await processes.one.database.fetch("SELECT * FROM login_clients")) == 4  # an address, three devices
    clock.advance(CLIENT_KEPT_SECONDS - 40 * IDLE_SECONDS)
    client = replace(HOME, address="203.0.113.1", device=again.device)
    assert (await logins.log_in_with_cookie("ada", PASSWORD, client)).device == ""
    clock.advance(40 * IDLE_SECONDS)
    await processes.one.worker.retention.delete_leftovers()
    assert len(await processes.one.database.fetch("SELECT * FROM login_clients")) == 2  # what was used since


async def test_what_ends_sessions(processes: Processes) -> None:
    user = await add_user(processes)
    logins, users = processes.one.logins, processes.one.users

    async def log_in() -> Login:
        return await logins.log_in_with_cookie("ada", PASSWORD, HOME)

    first, second = await log_in(), await log_in()
    await logins.log_out(first.session.id)
    assert [await is_alive(processes, one) for one in (first, second)] == [False, True]
    assert await refused(logins.revoke("user_" + "0" * 32, second.session.id)) == "not_found"
    await logins.revoke(user.id, second.session.id)
    assert not await is_alive(processes, second)

    first, second = await log_in(), await log_in()
    assert await logins.revoke_all(user.id, but=second.session.id) == 1
    assert [await is_alive(processes, one) for one in (first, second)] == [False, True]
    await users.change(user.id, UserChanges(is_admin=True))
    assert not await is_alive(processes, second)

    first = await log_in()
    await users.change(user.id, UserChanges(is_disabled=True))
    assert await outcome_of(processes.two, "ada", PASSWORD) == "unauthorized"
    await users.change(user.id, UserChanges(is_disabled=False))
    assert not await is_alive(processes, first)

    first = await log_in()
    await users.database.transact(*users.delete_account(user.id))
    assert not await is_alive(processes, first)
    assert await outcome_of(processes.two, "ada", PASSWORD) == "unauthorized"


async def test_login_does_not_survive_what_happens_while_its_password_is_verified(processes: Processes) -> None:
    """Disabled, deleted, or another password: its session would begin after the others were ended."""
    one, users = processes.one, processes.two.users
    changes: dict[str, Callable[[str], Awaitable[object]]] = {
        "disabled": lambda user: users.change(user, UserChanges(is_disabled=True)),
        "another password": lambda user: users.change(user, UserChanges(password="a password set by an admin")),
        "deleted": lambda user: users.database.transact(*users.delete_account(user)),
    }
    for name, change in changes.items():
        user = await add_user(processes, name)
        async with AsyncExitStack() as verifying:
            for _ in range(HASH_THREADS):  # both threads are busy
                await verifying.enter_async_context(_busy(one.passwords.limiter))
            trying = asyncio.create_task(outcome_of(one, name, PASSWORD))
            while not one.passwords.limiter.statistics().tasks_waiting:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await change(user.id)
        assert await trying == "unauthorized", name
        assert await one.logins.list_sessions(user.id) == []


@asynccontextmanager
async def _busy(limiter: CapacityLimiter) -> AsyncIterator[None]:
    """Hold one thread of a limiter."""
    borrower = object()
    await limiter.acquire_on_behalf_of(borrower)
    try:
        yield
    finally:
        limiter.release_on_behalf_of(borrower)
