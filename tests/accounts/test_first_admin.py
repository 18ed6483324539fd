"""The first admin: created at the start, never overwritten; and what refuses to start beside users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from broker.accounts.first_admin import prepare_accounts
from broker.accounts.users import UserChanges
from broker.bootstrap import load_settings, open_services
from broker.errors import SettingsError
from storage.accounts.users import User
from tests.accounts.opening import PASSWORD, open_accounts, outcome_of
from tests.integration.test_doctor import get_finding, make_settings
from tests.support.clock import ManualClock
from tests.support.log_lines import captured_lines

pytestmark = pytest.mark.anyio

SECRET = SecretStr(PASSWORD)


async def start(folder: Path, clock: ManualClock, **settings: Any) -> list[User]:
    """Start a broker once; return its users."""
    defaults: dict[str, Any] = {"tunnel_api": "http://127.0.0.1:9", "data_dir": folder, "kie_keys": "a-key"}
    chosen = load_settings(env_file=None, **{**defaults, **settings})
    async with open_services(chosen, clock=clock) as services:
        return await services.users.list_page(before=None, limit=10)


async def test_first_admin_is_created_once_and_never_overwritten(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    (created,) = await start(tmp_path, clock, admin_username="Root", admin_password_file=path)
    assert (created.name, created.is_admin) == ("Root", True)
    (again,) = await start(tmp_path, clock, admin_username="ROOT", admin_password="short")  # not read any more
    assert again == created
    async with open_accounts(tmp_path, clock) as services:
        assert await outcome_of(services, "root", PASSWORD) == "ok"


async def test_start_says_that_the_first_admin_is_somebody_else(tmp_path: Path, clock: ManualClock) -> None:
    """Someone registered the name before: the account gets no rights, and the operator learns it."""
    async with open_accounts(tmp_path, clock) as services:
        user = await services.users.add("root", PASSWORD)
        settings = services.settings.model_copy(update={"admin_username": "Root", "admin_password": SECRET})
        for changes, lines in ((UserChanges(), 1), (UserChanges(is_admin=True), 0), (UserChanges(is_disabled=True), 1)):
            await services.users.change(user.id, changes)
            with captured_lines() as logged:
                await prepare_accounts(services.users, settings)
            assert [one["action"] for one in logged] == ["first_admin_is_none"] * lines


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({"admin_username": "root"}, "BROKER_ADMIN_PASSWORD_FILE"),
        ({"admin_password": SECRET}, "BROKER_ADMIN_USERNAME"),
        ({"admin_username": "root", "admin_password": SECRET, "admin_password_file": Path("x")}, "remove one"),
        ({"admin_username": "root", "admin_password_file": Path("/nowhere/password")}, "check /nowhere/password"),
        ({"admin_username": "root", "admin_password": SecretStr("short")}, "at least 8 characters"),
        ({"admin_username": "ro\u200bot", "admin_password": SECRET}, "BROKER_ADMIN_USERNAME"),
        ({"admin_username": "root", "admin_password": SECRET, "allow_anonymous": True}, "BROKER_ALLOW_ANONYMOUS"),
    ],
)
async def test_wrong_admin_settings_stop_the_start(
    tmp_path: Path, clock: ManualClock, settings: dict[str, Any], cure: str
) -> None:
    async with open_accounts(tmp_path, clock) as services:
        with pytest.raises(SettingsError, match=cure) as caught:
            await prepare_accounts(services.users, services.settings.model_copy(update=settings))
        assert PASSWORD not in str(caught.value)
        assert not await services.tables.users.has_any()


async def test_anonymous_access_is_refused_at_the_start_once_a_user_exists(tmp_path: Path, clock: ManualClock) -> None:
    assert await start(tmp_path, clock, allow_anonymous=True) == []
    async with open_accounts(tmp_path, clock) as services:
        await services.users.add("ada", PASSWORD)
    with pytest.raises(SettingsError, match="broker keys add"):
        await start(tmp_path, clock, allow_anonymous=True)


async def test_doctor_tells_how_to_get_an_admin(tmp_path: Path, clock: ManualClock) -> None:
    settings = make_settings(tmp_path)
    assert (await get_finding(settings, "users"))[0] == "ok"
    async with open_accounts(settings.data_dir, clock) as services:
        assert (await get_finding(settings, "users"))[0] == "ok"
        ada = await services.users.add("ada", PASSWORD)
        status, _, cure = await get_finding(settings, "users")
        assert (status, "broker users add NAME --admin" in cure) == ("warning", True)
        await services.users.change(ada.id, UserChanges(is_admin=True))
        assert (await get_finding(settings, "users"))[0] == "ok"
        status, _, cure = await get_finding(make_settings(tmp_path, allow_anonymous=True), "users")
        assert (status, "BROKER_ALLOW_ANONYMOUS" in cure) == ("failed", True)
        await services.users.change(ada.id, UserChanges(is_disabled=True))
        assert (await get_finding(settings, "users"))[0] == "warning"
