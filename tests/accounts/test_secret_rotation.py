"""A new SECRET_KEY: what it opens, what a start refuses, and `broker secrets rotate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from broker.accounts.provider_keys import KeyVault
from broker.accounts.sealing import KeyRing
from broker.bootstrap import load_settings
from broker.clock import SystemClock
from broker.doctor.context import open_context
from broker.doctor.sealed_keys import check_sealed_keys
from broker.errors import SettingsError
from broker.notifications.signing import known_secrets
from broker.services import Services
from broker.settings.loading import SalvagedSettings
from storage.accounts.provider_keys import ProviderKey
from storage.ids import new_provider_key_id
from tests.support.brokers import still
from tests.support.clock import ManualClock
from tests.support.planted_secrets import PLANTED, find_secrets
from tests.support.shell import Shell
from webhooks.signatures.base import Proof
from webhooks.tokens import CallbackTokens

pytestmark = pytest.mark.anyio

SECOND = PLANTED["old-secret-key"]


async def add_key(services: Services, secret: str) -> ProviderKey:
    """Insert a sealed key."""
    vault = KeyVault(ring=KeyRing.from_secrets(services.tokens.secret))
    row = ProviderKey(
        id=new_provider_key_id(),
        owner=f"user_{'a' * 32}",
        provider="kie",
        account="kie@1",
        sealed="",
        sealing_key="",
        last_four=secret[-4:],
        is_verified=True,
        created_at=services.clock.now(),
    )
    sealed = vault.seal_row(row, SecretStr(secret))
    row = ProviderKey(**{**vars(row), "sealed": sealed.text, "sealing_key": sealed.key_id})
    await services.database.transact(services.tables.provider_keys.insert_key(row))
    return row


async def test_start_is_refused_until_the_earlier_secret_is_known_or_its_keys_are_sealed_again(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with still(tmp_path, clock) as services:
        await add_key(services, "planted-key-of-alice-0001")
        token, first = services.tokens.token("task_1", 1), services.tokens.secret.decode()
    with pytest.raises(SettingsError) as refused:
        async with still(tmp_path, clock, secret_key=SECOND):
            pass
    assert "1 provider key of users cannot be opened: sealed with another SECRET_KEY" in str(refused.value)
    assert f"BROKER_OLD_SECRET_KEYS (the one that was generated here is in {tmp_path / 'secret.key'})" in str(
        refused.value
    )
    assert first not in str(refused.value)
    assert find_secrets(str(refused.value).encode()) == []
    async with still(tmp_path, clock, secret_key=SECOND, old_secret_keys=first) as services:
        assert services.tokens.verify("task_1", 1, token) == Proof.BODY_VERIFIED
        assert services.tokens.verify("task_1", 2, token) == Proof.WRONG
        assert services.tokens.token("task_1", 1) != token
        assert {first, SECOND} <= known_secrets(services.settings, services.tokens.secrets)
        for owner in ("house:local", f"user_{'a' * 32}"):
            assert len(services.signing_keys.of_owner(owner)) == 2, "receivers may know only the first"
    shell = Shell(tmp_path, {"BROKER_DATA_DIR": ".", "SECRET_KEY": SECOND})
    refused_rotation = shell.run("secrets", "rotate")
    assert refused_rotation.code == 2
    assert "BROKER_OLD_SECRET_KEYS" in refused_rotation.err
    rotated = shell.run("secrets", "rotate", BROKER_OLD_SECRET_KEYS=f"another one of them, {first}")
    assert (rotated.code, rotated.out) == (0, "1 sealed again, 0 were sealed with the current SECRET_KEY already.\n")
    assert "Remove BROKER_OLD_SECRET_KEYS" in rotated.err
    async with still(tmp_path, clock, secret_key=SECOND) as services:
        (key,) = await services.tables.provider_keys.list_of_account("kie@1")
        vault = KeyVault(ring=KeyRing.from_secrets(services.tokens.secret))
        assert vault.open_key(key).get_secret_value() == "planted-key-of-alice-0001"
    assert find_secrets((rotated.out + rotated.err + refused_rotation.err).encode()) == []


async def doctor_says(**settings: Any) -> tuple[str, str, str | None]:
    chosen = load_settings(env_file=None, **settings)
    async with open_context(SalvagedSettings(settings=chosen), SystemClock()) as context:
        (finding,) = await check_sealed_keys(context)
    return finding.status, finding.found, finding.cure


async def test_doctor_names_keys_that_do_not_open_and_those_to_be_sealed_again(
    tmp_path: Path, clock: ManualClock
) -> None:
    assert await doctor_says(data_dir=tmp_path) == ("skipped", "none yet", None)
    async with still(tmp_path, clock, secret_key=PLANTED["secret-key"]) as services:
        assert await doctor_says(data_dir=tmp_path) == ("ok", "none", None)
        await add_key(services, "planted-key-of-alice-0001")
    known = {"data_dir": tmp_path, "secret_key": PLANTED["secret-key"]}
    assert await doctor_says(**known) == ("ok", "1, sealed with the current SECRET_KEY", None)
    later = {"data_dir": tmp_path, "secret_key": SECOND}
    status, found, cure = await doctor_says(**later, old_secret_keys=PLANTED["secret-key"])
    assert (status, found) == ("warning", "1 of 1 are sealed with an earlier SECRET_KEY")
    assert cure == "run: broker secrets rotate"
    status, found, cure = await doctor_says(**later)
    assert (status, found.split(":")[0]) == ("failed", "1 provider key of users cannot be opened")
    assert cure is not None
    assert "BROKER_OLD_SECRET_KEYS" in cure


def test_tokens_of_an_old_secret_are_valid_for_their_attempt_alone() -> None:
    old = CallbackTokens(b"old").token("task_a", 1)
    both = CallbackTokens(b"new", (b"older", b"old"))
    assert both.verify("task_a", 1, old) == Proof.BODY_VERIFIED
    assert both.verify("task_b", 1, old) == Proof.WRONG
    assert CallbackTokens(b"new").verify("task_a", 1, old) == Proof.WRONG
    assert "old" not in repr(both)
