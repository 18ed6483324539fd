"""Provider keys of users in the database: bound to their rows, sealed again while they are read, never in a dump."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from broker.accounts.provider_keys import (
    KeyTest,
    KeyVault,
    ProviderKeyService,
    Validity,
    require_sealing_keys,
    rotate_keys,
)
from broker.accounts.sealing import KeyRing, SealBroken
from broker.errors import ApiError, SettingsError
from storage.accounts.provider_keys import ProviderKey, ProviderKeys
from storage.accounts.users import User, Users
from storage.limits.rate_limits import RateLimits
from storage.sql.migrate import upgrade_schema
from storage.states import TaskState
from storage.tasks import Tasks
from tests.contracts.databases import DATABASES
from tests.integration.storage.test_tasks import a_task
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

FIRST, SECOND = b"the first secret of the broker", b"the second secret of the broker"
ALICE, BOB = f"user_{'a' * 32}", f"user_{'b' * 32}"


class Desk:
    """The service with a provider that says what the test tells it to."""

    def __init__(self, database: Any, clock: ManualClock) -> None:
        self.database, self.clock, self.keys = database, clock, ProviderKeys(database)
        self.valid: Validity = "true"
        self.tested: list[str] = []
        self.vault = KeyVault(ring=KeyRing.from_secrets(FIRST))
        self.service = ProviderKeyService(
            clock=clock,
            keys=self.keys,
            vault=self.vault,
            usage=RateLimits(database),
            providers=("kie", "fal"),
            test_key=self._test_key,
        )

    async def _test_key(self, provider: str, secret: SecretStr) -> KeyTest:
        self.tested.append(secret.get_secret_value())
        return KeyTest(valid=self.valid, reason=f"{provider} was asked.")

    async def set_key(self, owner: str, secret: str, provider: str = "kie") -> ProviderKey:
        self.clock.advance(61)  # after the window of tests
        return (await self.service.set_key(owner, provider, SecretStr(secret)))[0]

    async def rows(self) -> list[Any]:
        found: list[Any] = await self.database.fetch("SELECT * FROM provider_keys ORDER BY id")
        return found


@pytest.fixture(params=list(DATABASES))
async def desk(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(await DATABASES[request.param](request, tmp_path))
        await upgrade_schema(database, clock.now())
        yield Desk(database, clock)


async def test_key_is_sealed_bound_to_its_row_and_shown_by_its_end(desk: Desk) -> None:
    alice = await desk.set_key(ALICE, "canary-key-of-alice-0001")
    bob = await desk.set_key(BOB, "canary-key-of-bob-000002")
    await desk.set_key(ALICE, "canary-key-of-alice-0003", provider="fal")
    assert [key.last_four for key in await desk.service.list_keys(ALICE)] == ["0003", "0001"]
    assert alice.account.startswith("kie@")
    assert alice.account != bob.account
    assert desk.vault.open_key(alice).get_secret_value() == "canary-key-of-alice-0001"
    assert "canary" not in f"{alice!r} {await desk.rows()!r}"
    bound = ("id", "owner", "provider", "account", "last_four")
    for name in bound:
        with pytest.raises(SealBroken):
            desk.vault.open_key(replace(alice, **{name: vars(bob)[name] + "x"}))
    for swapped in (
        replace(alice, sealed=bob.sealed),
        replace(bob, sealed=alice.sealed),
        replace(alice, owner=bob.owner),
        replace(alice, sealing_key="00000000"),
    ):
        with pytest.raises(SealBroken):
            desk.vault.open_key(swapped)
        assert desk.vault.find_secret(swapped) is None


async def test_refused_wrong_and_too_many_keys_are_not_stored(desk: Desk) -> None:
    desk.valid = "false"
    with pytest.raises(ApiError, match=r"kie was asked\. It is not stored\.") as refused:
        await desk.set_key(ALICE, "canary-key-that-is-wrong")
    assert (refused.value.code, refused.value.field) == ("invalid_request", "key")
    desk.valid = "unknown"
    assert not (await desk.set_key(ALICE, "canary-key-of-alice-0001")).is_verified
    for secret in ("short", "canary key with blanks", "canary-clé-0123456789", "k" * 513):
        with pytest.raises(ApiError, match="visible ASCII"):
            await desk.set_key(ALICE, secret)
    with pytest.raises(ApiError, match="no provider of this name"):
        await desk.set_key(ALICE, "canary-key-of-alice-0001", provider="sandbox")
    with pytest.raises(ApiError, match="environment variables"):
        await desk.set_key("house:local", "canary-key-of-the-house")
    assert len(desk.tested) == 2, "nothing is asked about a key that cannot be one"
    for _ in range(9):
        await desk.service.set_key(BOB, "fal", SecretStr("canary-key-of-bob-000002"))
    await desk.service.set_key(BOB, "fal", SecretStr("canary-key-of-bob-000002"))
    with pytest.raises(ApiError, match="At most 10 keys a minute"):
        await desk.service.set_key(BOB, "fal", SecretStr("canary-key-of-bob-000002"))
    await desk.set_key(ALICE, "canary-key-of-alice-0002")
    assert len(await desk.rows()) == 2, "one for each owner and provider"


async def test_replaced_and_removed_keys_stay_as_long_as_their_jobs(desk: Desk) -> None:
    first = await desk.set_key(ALICE, "canary-key-of-alice-0001")
    tasks = Tasks(desk.database)
    job = a_task(1, state=TaskState.WAITING, provider=first.account, key_id=first.id)
    await desk.database.transact(tasks.insert_task(job))
    second = await desk.set_key(ALICE, "canary-key-of-alice-0002")
    assert second.account == first.account, "the account keeps its name"
    assert [key.id for key in await desk.keys.list_of_account(first.account)] == [second.id, first.id]
    await desk.service.remove_key(ALICE, "kie")
    assert [row["id"] for row in await desk.rows()] == [first.id], "no job needs the second one"
    assert await desk.service.list_keys(ALICE) == []
    with pytest.raises(ApiError, match="no key of your own"):
        await desk.service.remove_key(ALICE, "kie")
    await desk.keys.delete_unused()
    assert len(await desk.rows()) == 1
    await desk.database.execute("UPDATE tasks SET state = 'fetching'")
    await desk.keys.delete_unused()
    assert len(await desk.rows()) == 1, "its links may have to be renewed"
    await desk.database.execute("UPDATE tasks SET state = 'succeeded'")
    await desk.keys.delete_unused()
    assert await desk.rows() == []
    assert await desk.database.fetch("SELECT * FROM provider_limits") == []


async def test_concurrent_settings_leave_one_key(desk: Desk) -> None:
    secrets = [f"canary-key-of-alice-{number:04}" for number in range(4)]
    setting = (desk.service.set_key(ALICE, "kie", SecretStr(secret)) for secret in secrets)
    ended = await asyncio.gather(*setting, return_exceptions=True)
    assert all(isinstance(one, tuple) or (isinstance(one, ApiError) and one.code == "conflict") for one in ended)
    (row,) = await desk.rows()
    (key,) = await desk.service.list_keys(ALICE)
    assert desk.vault.open_key(key).get_secret_value().endswith(row["last_four"])


async def test_keys_are_readable_at_every_moment_of_a_rotation(desk: Desk) -> None:
    for number in range(6):
        await desk.set_key(f"user_{number:032x}", f"canary-key-of-{number:014}")
    both = KeyVault(ring=KeyRing.from_secrets(SECOND, [FIRST]))
    reads = 0

    async def read_all() -> None:
        nonlocal reads
        while reads < 1000:
            for key in await desk.keys.list_sealed_by_others("none", after="", limit=9):
                number = int(key.owner.removeprefix("user_"), 16)
                assert both.open_key(key).get_secret_value() == f"canary-key-of-{number:014}"
                reads += 1

    async def rotate_twice() -> None:
        back = KeyVault(ring=KeyRing.from_secrets(FIRST, [SECOND]))
        for vault in (both, back, both):
            assert (await rotate_keys(desk.keys, vault)).sealed_again == 6

    await asyncio.gather(read_all(), read_all(), rotate_twice())
    assert reads >= 1000
    assert (await rotate_keys(desk.keys, both)).current == 6
    only = KeyVault(ring=KeyRing.from_secrets(SECOND))
    for number in range(6):
        (key,) = await desk.keys.list_of_owner(f"user_{number:032x}")
        assert only.open_key(key).get_secret_value() == f"canary-key-of-{number:014}", "the old secret is not needed"


async def test_unknown_secret_is_named_and_what_it_sealed_can_be_given_up(desk: Desk) -> None:
    await require_sealing_keys(desk.keys, KeyRing.from_secrets(SECOND))
    lost = await desk.set_key(ALICE, "canary-key-of-alice-0001")
    second = KeyVault(ring=KeyRing.from_secrets(SECOND))
    message = f"1 provider key of users cannot be opened.*{lost.sealing_key}.*BROKER_OLD_SECRET_KEYS, or"
    with pytest.raises(SettingsError, match=message):
        await require_sealing_keys(desk.keys, second.ring, hint=", or")
    with pytest.raises(SettingsError, match="--drop-unreadable"):
        await rotate_keys(desk.keys, second)
    assert len(await desk.rows()) == 1
    kept = await desk.set_key(BOB, "canary-key-of-bob-000002")
    sealed = second.seal_row(kept, SecretStr("canary-key-of-bob-000002"))
    await desk.database.transact(desk.keys.reseal_key(kept, sealed.text, sealed.key_id))
    counted = await rotate_keys(desk.keys, second, drop_unreadable=True)
    assert (counted.current, counted.unreadable) == (1, 1)
    assert [row["id"] for row in await desk.rows()] == [kept.id]
    await require_sealing_keys(desk.keys, second.ring)


async def test_keys_of_deleted_owners_are_deleted_when_their_orders_are_submitted(desk: Desk) -> None:
    now = desk.clock.now()
    user = User(id=ALICE, name="alice", name_key="alice", password_hash="x", created_at=now, updated_at=now)
    await desk.database.transact(Users(desk.database).insert_user(user))
    gone, _ = await desk.set_key(BOB, "canary-key-of-bob-000002"), await desk.set_key(ALICE, "canary-key-of-alice-0001")
    queued = a_task(1, provider=gone.account)
    await desk.database.transact(Tasks(desk.database).insert_task(queued))
    assert await desk.keys.list_ownerless(9) == []
    await desk.database.execute("DELETE FROM tasks")
    assert [key.owner for key in await desk.keys.list_ownerless(9)] == [BOB]
    await desk.database.transact(*desk.keys.delete_of_owner(ALICE))
    assert [row["owner"] for row in await desk.rows()] == [BOB]
