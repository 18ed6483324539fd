"""The throttle of logins: what 10 000 wrong ones cost, who still gets in, and what a stranger learns.

The clock is the test's, and hashes are counted; one with the parameters of the product takes 35 ms of one core.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.accounts.throttle import (
    FIRST_ATTEMPTS,
    PER_ACCOUNT_FIRST,
    PER_ADDRESS,
    PER_KNOWN,
    RIGHT_PASSWORDS_PER_ACCOUNT,
    SERIES,
    STRANGERS_FIRST,
    LoginClient,
    address_prefix,
    max_verifications_of_strangers,
)
from broker.errors import ApiError
from broker.services import Services
from tests.accounts.opening import HOME, PASSWORD, QUICK, count_hashes, open_accounts, open_processes, outcome_of
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

WRONG = "a wrong password"
NEW_PLACE = LoginClient(address="203.0.113.5")


@pytest.fixture
async def services(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Services]:
    async with open_accounts(tmp_path, clock, hashing=QUICK) as opened:
        await opened.users.add("Ada", PASSWORD)
        yield opened


def at(number: int) -> LoginClient:
    """Return a client at an IPv4 address of its own or, for odd numbers, in an IPv6 network of its own."""
    if number % 2:
        return LoginClient(address=f"2a00:{number >> 16:x}:{number & 0xFFFF:x}::1")
    return LoginClient(address=f"80.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}")


async def guess(services: Services, name: str, client: LoginClient) -> str:
    """Return the outcome of a login with a wrong password."""
    return await outcome_of(services, name, WRONG, client)


async def log_in(services: Services, client: LoginClient) -> str:
    """Return the outcome of a login of the true user."""
    return await outcome_of(services, "ada", PASSWORD, client)


async def wait_named(services: Services, name: str, client: LoginClient = HOME) -> float:
    """Return the seconds to wait that a refusal names. No password is looked at for it."""
    before = count_hashes(services)
    with pytest.raises(ApiError) as caught:
        await services.logins.log_in_with_cookie(name, PASSWORD, client)
    assert (caught.value.code, caught.value.status, count_hashes(services)) == ("rate_limited", 429, before)
    return caught.value.retry_after or 0.0


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.faults)])
async def test_10000_wrong_logins_cost_a_known_number_of_hashes(
    services: Services, clock: ManualClock, count: int
) -> None:
    """Guesses at one account and at all of them, from many addresses and from one, twenty at a time.

    Ada gets in all the same, with her browser from anywhere.
    """
    device = (await services.logins.log_in_with_cookie("ada", PASSWORD, HOME)).device
    started_at, before, outcomes, owner = clock.now(), count_hashes(services), Counter[str](), list[str]()
    for start in range(0, count, 20):
        tries = []
        for number in range(start, start + 20, 4):
            tries += [
                guess(services, "ada", at(number % 2000)),  # a botnet at her account
                guess(services, f"user-{number}", at(number + 1)),  # every name and address is new
                guess(services, f"user-{number % 50}", at(7)),  # one address at many accounts
                guess(services, "ada", HOME),  # a neighbour behind her own address
            ]
        outcomes.update(await asyncio.gather(*tries))
        clock.advance(0.5)
        if start % 500 == 0:
            owner.append(await log_in(services, replace(NEW_PLACE, device=device)))
    took, hashes = clock.now() - started_at, count_hashes(services) - before - len(owner)

    neighbour = PER_ADDRESS.burst + took / PER_ADDRESS.interval
    bound = max_verifications_of_strangers(took) + neighbour
    report = f"{count} wrong logins in {took:.0f} s: {hashes} hashes, at most {bound:.0f}; {dict(outcomes)}"
    sys.stdout.write(f"{report}\n")
    assert hashes <= bound, report
    assert outcomes == {"unauthorized": hashes, "rate_limited": count - hashes}, report
    assert set(owner) == {"ok"}, report


async def test_burst_from_new_addresses_costs_the_allowance_of_strangers(services: Services) -> None:
    """At one moment, and counted before the first of them is verified."""
    before = count_hashes(services)
    tries = [guess(services, f"user-{number}", at(number)) for number in range(3 * STRANGERS_FIRST.burst)]
    outcomes = Counter(await asyncio.gather(*tries))
    assert outcomes["unauthorized"] == count_hashes(services) - before
    assert STRANGERS_FIRST.burst * 0.9 <= outcomes["unauthorized"] <= STRANGERS_FIRST.burst


async def test_one_address_has_an_allowance_over_all_accounts(services: Services, clock: ManualClock) -> None:
    outcomes = [await guess(services, f"user-{number}", at(1)) for number in range(PER_ADDRESS.burst + 5)]
    assert outcomes == ["unauthorized"] * PER_ADDRESS.burst + ["rate_limited"] * 5
    assert await wait_named(services, "somebody", at(1)) == PER_ADDRESS.interval
    neighbour = replace(at(1), address=at(1).address.replace("::1", "::2:3"))  # in the same IPv6 network
    assert await guess(services, "somebody", neighbour) == "rate_limited"
    assert await guess(services, "somebody", at(3)) == "unauthorized"
    clock.advance(PER_ADDRESS.interval)
    assert [await guess(services, "somebody", at(1)) for _ in range(2)] == ["unauthorized", "rate_limited"]
    clock.advance(-SERIES.kept_seconds)  # the clock was wrong, and is set back
    assert await guess(services, "another", at(1)) == "unauthorized"


async def test_logins_with_the_right_password_use_nothing_up(services: Services) -> None:
    """An office behind one address logs in at nine o'clock."""
    for number in range(PER_ADDRESS.burst + 5):
        await services.users.add(f"user-{number}", PASSWORD)
        assert await outcome_of(services, f"user-{number}", PASSWORD, at(1)) == "ok"


async def test_program_logs_in_ten_times_at_once(services: Services) -> None:
    tries = [log_in(services, NEW_PLACE) for _ in range(SERIES.free_attempts)]
    assert await asyncio.gather(*tries) == ["ok"] * SERIES.free_attempts


async def test_logins_of_one_account_cost_a_known_number_of_hashes(services: Services, clock: ManualClock) -> None:
    """A program that logs in for every request. A stranger's wrong passwords use nothing of it up."""
    allowed = RIGHT_PASSWORDS_PER_ACCOUNT.burst
    for _ in range(allowed):
        assert await log_in(services, HOME) == "ok"
    assert await wait_named(services, "ada") == RIGHT_PASSWORDS_PER_ACCOUNT.interval
    clock.advance(RIGHT_PASSWORDS_PER_ACCOUNT.interval)
    assert [await log_in(services, HOME) for _ in range(2)] == ["ok", "rate_limited"]
    (user,) = await services.users.list_page(before=None, limit=1)
    with pytest.raises(ApiError, match="seconds"):
        await services.logins.confirm_password(user.id, None, PASSWORD)
    clock.advance(RIGHT_PASSWORDS_PER_ACCOUNT.full_seconds)
    for number in range(allowed):
        await guess(services, "ada", at(number))
        clock.advance(1.0)
    assert await log_in(services, HOME) == "ok"


async def test_wrong_passwords_of_known_clients_cost_a_known_number_of_hashes(services: Services) -> None:
    """Someone with an account collects browsers, addresses and sessions, to keep the processor busy with each."""
    known, tries = [at(number) for number in range(6)], range(SERIES.free_attempts)
    logins = [await services.logins.log_in_with_cookie("ada", PASSWORD, client) for client in known]

    async def confirm(session_id: str) -> str:
        with pytest.raises(ApiError) as caught:
            await services.logins.confirm_password(logins[0].user.id, session_id, WRONG)
        return caught.value.code

    browsers = [replace(NEW_PLACE, device=login.device) for login in logins]
    for one in (browsers, known):
        outcomes = Counter([await guess(services, "ada", client) for client in one for _ in tries])
        assert outcomes == {"unauthorized": PER_KNOWN.burst, "rate_limited": 60 - PER_KNOWN.burst}
    outcomes = Counter([await confirm(login.session.id) for login in logins for _ in tries])
    assert outcomes == {"forbidden": PER_KNOWN.burst, "rate_limited": 60 - PER_KNOWN.burst}


async def test_owner_gets_in_while_strangers_guess(services: Services, clock: ManualClock) -> None:
    """In a new place at once while the same addresses guess on; while new ones do, with a known device or address."""
    botnet = [at(number) for number in range(PER_ACCOUNT_FIRST.burst + 2)]
    for client in botnet * FIRST_ATTEMPTS:
        assert await guess(services, "ada", client) == "unauthorized"
        clock.advance(PER_ACCOUNT_FIRST.interval)
    await asyncio.gather(*(guess(services, "ada", client) for client in botnet))
    assert await log_in(services, NEW_PLACE) == "ok"
    first = await services.logins.log_in_with_cookie("ada", PASSWORD, HOME)

    elsewhere = LoginClient(address="203.0.113.99")
    guesses = [guess(services, "ada", at(100 + number)) for number in range(3 * PER_ACCOUNT_FIRST.burst)]
    outcomes = Counter(await asyncio.gather(*guesses))
    assert outcomes["unauthorized"] <= PER_ACCOUNT_FIRST.burst
    assert await log_in(services, elsewhere) == "rate_limited"
    assert await log_in(services, NEW_PLACE) == "ok"
    assert await log_in(services, replace(elsewhere, device=first.device)) == "ok"
    invented = LoginClient(address="203.0.113.98", device="nbd_of-a-stranger")
    assert await guess(services, "ada", invented) == "rate_limited"
    clock.advance(PER_ACCOUNT_FIRST.interval)
    assert await log_in(services, LoginClient(address="203.0.113.100")) == "ok"


async def test_neighbour_behind_the_same_address_locks_no_device_out(services: Services) -> None:
    first = await services.logins.log_in_with_cookie("ada", PASSWORD, HOME)
    guesses = [await guess(services, "ada", HOME) for _ in range(SERIES.free_attempts + 2)]
    assert guesses == ["unauthorized"] * SERIES.free_attempts + ["rate_limited"] * 2
    for number in range(PER_ADDRESS.burst):
        await guess(services, f"user-{number}", HOME)
    assert await log_in(services, HOME) == "rate_limited"
    assert await log_in(services, replace(HOME, device=first.device)) == "ok"


async def test_delay_of_a_series_grows_and_a_right_password_ends_it(services: Services, clock: ManualClock) -> None:
    first = await services.logins.log_in_with_cookie("ada", PASSWORD, HOME)
    here, free = replace(HOME, device=first.device), ["unauthorized"] * SERIES.free_attempts
    for _ in range(2):
        assert [await guess(services, "ada", here) for _ in range(SERIES.free_attempts)] == free
        waits = [await wait_named(services, "ada", here)]
        for _ in range(8):
            clock.advance(waits[-1])
            assert await guess(services, "ada", here) == "unauthorized"
            waits.append(await wait_named(services, "ada", here))
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60] and waits[-1] == SERIES.max_pause
        clock.advance(waits[-1])
        assert await log_in(services, here) == "ok"
    for _ in range(2):
        assert [await guess(services, "ada", here) for _ in range(SERIES.free_attempts + 1)] == [*free, "rate_limited"]
        clock.advance(SERIES.kept_seconds)
    assert [await guess(services, "ada", here) for _ in range(SERIES.free_attempts + 1)] == [*free, "rate_limited"]
    clock.advance(-4 * SERIES.kept_seconds)  # the clock was wrong, and is set back
    assert await log_in(services, here) == "ok"


async def test_unknown_and_known_users_take_the_same_path(services: Services, clock: ManualClock) -> None:
    """The same sentence, the same number of hashes with the same parameters, the same refusals."""

    async def answers(name: str, client: LoginClient) -> list[tuple[str, str, float | None, int]]:
        found = []
        clock.advance(60.0)
        for _ in range(SERIES.free_attempts + 2):
            before = count_hashes(services)
            with pytest.raises(ApiError) as caught:
                await services.logins.log_in_with_tokens(name, WRONG, client)
            error = caught.value
            found.append((error.code, error.message, error.retry_after, count_hashes(services) - before))
        return found

    known = await answers("ada", at(1))
    assert known == await answers("nobody-of-this-name", at(3)) == await answers("no\nname \u202e", at(5))
    await services.users.add("Bob", PASSWORD, email="bob@example.com")
    for name in ("bob", "bob@example.com"):  # that they belong together does not show
        assert known == await answers(name, at(7)), name
    assert known == await answers("nobody@example.com", at(9))
    assert [hashes for *_, hashes in known] == [1] * SERIES.free_attempts + [0, 0]
    with pytest.raises(ApiError, match="wrong"):
        await services.logins.log_in_with_cookie("ada", "x" * 1025, at(11))


async def test_series_counts_over_processes_and_at_the_same_moment(
    tmp_path: Path, clock: ManualClock, request: pytest.FixtureRequest
) -> None:
    for settings in ({}, {"database_url": await request.getfixturevalue("postgres").fresh()}):
        folder = tmp_path / str(len(settings))
        async with open_processes(folder, clock, hashing=QUICK, **settings) as both:
            tries: list[Any] = [guess(one, "ada", HOME) for _ in range(15) for one in (both.one, both.two)]
            outcomes = Counter(await asyncio.gather(*tries))
            assert both.hashes == outcomes["unauthorized"] == SERIES.free_attempts, settings
            assert await guess(both.two, "ada", HOME) == "rate_limited"
            clock.advance(1.0)
            tries = [guess(one, "ada", HOME) for one in (both.one, both.two) * 3]
            assert Counter(await asyncio.gather(*tries)) == {"unauthorized": 1, "rate_limited": 5}


async def test_database_holds_no_name_and_no_address_of_an_attempt(services: Services) -> None:
    """People type passwords into the wrong field."""
    await guess(services, "hunter2-typed-as-a-name", LoginClient(address="203.0.113.200"))
    for table in ("login_attempts", "login_clients"):
        rows = await services.database.fetch(f"SELECT * FROM {table}")
        assert not any(text in str(rows) for text in ("hunter2", "203.0.113"))


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:50123", "203.0.113.9"),  # as some proxies write it
        ("[2001:db8:1:2::5]:443", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::5]", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unix:" + "x" * 100, "unix:" + "x" * 59),
    ],
)
def test_address_counts_as_its_network(address: str, prefix: str) -> None:
    assert address_prefix(address) == prefix
