"""Commands about API keys, users and tasks, beside a running broker that refuses requests without a key."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.cli.admin.api_keys import add_key, list_keys, revoke_key
from broker.cli.admin.users import add_user as create_user
from broker.cli.admin.users import change_quota, change_user, delete_user, list_users, set_password
from broker.cli.connection import connect_broker, make_client
from broker.cli.console import CommandError, explain_error
from broker.cli.tasks import delete_task, list_tasks, pin_task, retry_task, unpin_task
from broker.client import BrokerApiError
from storage.states import TaskState
from tests.accounts.test_api_keys import add_user
from tests.support.api import ApiBroker, open_api
from tests.support.log_lines import restored_logging

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore logging, which commands configure."""
    with restored_logging():
        yield


class Printed:
    """What commands print to standard output, without the lines that the broker beside them logs."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured

    def lines(self) -> list[str]:
        return [line for line in self._captured.readouterr().out.splitlines() if not re.match(r"\d{4}-\d\d-", line)]


@pytest.fixture
async def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiBroker]:
    """Yield a broker whose folder and port the commands have."""
    monkeypatch.chdir(tmp_path)
    async with open_api(tmp_path / "data", sockets=True) as broker:
        monkeypatch.setenv("BROKER_PORT", str(broker.port))
        monkeypatch.setenv("NANO_BANANA_API_KEY", "a-key-of-the-tests")
        yield broker


async def test_keys_are_made_listed_and_revoked(broker: ApiBroker, capsys: pytest.CaptureFixture[str]) -> None:
    """The first key closes the broker to commands without one; they open its database from then on."""
    await add_key("laptop", owner=None, expires_in_days=None, as_json=False)
    out, err = capsys.readouterr()
    (laptop,) = [line for line in out.splitlines() if line.startswith("nbk_")]
    assert re.fullmatch(r"nbk_\S{43}", laptop) and laptop not in err
    assert "not shown again" in err and "every request needs a key" in err
    assert (await broker.client.get("/api/tasks")).status_code == 401
    assert (await broker.client.get("/api/tasks", headers={"Authorization": f"Bearer {laptop}"})).status_code == 200
    async with make_client(str(broker.client.base_url), broker.services.settings, None) as keyless:
        with pytest.raises(BrokerApiError) as refused:
            await keyless.ask("GET", "/api/tasks")
    sentence, _ = explain_error(refused.value) or ("", None)
    assert "Commands send BROKER_KEY" in sentence

    await add_user(broker.services, "Ada")
    await add_key("phone", owner="ada", expires_in_days=3, as_json=False)
    capsys.readouterr()
    await list_keys(as_json=False)
    phone, first = Printed(capsys).lines()
    assert re.fullmatch(r"key_\w{24}  nbk_.{6}…  phone  Ada  created \S+  never used  expires \S+", phone)
    assert re.fullmatch(r"key_\w{24}  nbk_.{6}…  laptop  no user  created \S+  last used \S+  does not expire", first)
    await revoke_key("laptop")
    assert (await broker.client.get("/api/tasks", headers={"Authorization": f"Bearer {laptop}"})).status_code == 401
    with pytest.raises(BrokerApiError, match="no API key"):
        await revoke_key("laptop")


async def test_users_are_added_changed_and_deleted(
    broker: ApiBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is read from standard input; the first user closes the broker to commands without a key."""
    printed, credentials = Printed(capsys), {"username": "ada", "password": "a first password"}
    monkeypatch.setattr("sys.stdin", io.StringIO("a first password\nthe second password\n"))
    given: dict[str, Any] = {"email": None, "must_change_password": False, "as_json": False}
    await create_user("Ada", is_admin=True, **given)
    assert printed.lines() == ["Ada can log in and is an admin."]
    assert (await broker.client.get("/api/tasks")).status_code == 401
    assert (await broker.client.post("/api/login", json=credentials)).status_code == 200
    with pytest.raises(BrokerApiError, match="taken"):
        await create_user("ADA", is_admin=False, **given)

    await change_user("ada", "is disabled", isDisabled=True)
    assert printed.lines() == ["Ada is disabled."]
    assert (await broker.client.post("/api/login", json=credentials)).status_code == 401
    await list_users(as_json=False)
    (line,) = printed.lines()
    assert re.fullmatch(r"user_\w{32}  Ada  admin  DISABLED  added \S+  last login \S+", line)
    await change_user("ada", "can log in again", isDisabled=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("the third password\n"))
    await set_password("ADA", must_change=True)
    assert (await broker.client.post("/api/login", json=credentials)).status_code == 401
    login = await broker.client.post("/api/login", json={**credentials, "password": "the third password"})
    assert login.json()["data"]["mustChangePassword"] is True

    unchanged = dict.fromkeys(("images", "usd", "inFlight", "pins", "bytes"))
    printed.lines()
    await change_quota("ada", {**unchanged, "images": "5", "usd": "0.5", "pins": "unlimited"}, as_json=False)
    await change_quota("ada", {**unchanged, "images": "default"}, as_json=False)
    limits = [line.split()[1] for line in printed.lines()]
    assert limits == ["5", "0.5", *("default", "unlimited", "default"), *("default", "0.5"), *limits[2:5]]
    await change_quota("ada", unchanged, as_json=True)
    assert [json.loads(line) for line in printed.lines()] == [{"usd": 0.5, "pins": "unlimited"}]
    with pytest.raises(CommandError, match="use a number"):
        await change_quota("ada", {**unchanged, "usd": "much"}, as_json=False)

    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(CommandError, match="no password"):
        await set_password("ada", must_change=False)
    with pytest.raises(CommandError, match="--yes"):
        await delete_user("ada", is_confirmed=False)
    with pytest.raises(CommandError, match="broker users list"):
        await delete_user("bob", is_confirmed=True)
    await delete_user("ada", is_confirmed=True)
    assert printed.lines() == ["Ada is deleted."]
    assert (await broker.client.get("/api/tasks")).status_code == 200


async def test_tasks_are_found_retried_pinned_and_deleted(
    broker: ApiBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    await add_user(broker.services, "Ada")  # from now on the commands open the database
    now = broker.services.clock.now()
    ended = {"ended_at": now, "due_at": now + 86_400}
    done = await broker.add_task(number=1, state=TaskState.SUCCEEDED, **ended)
    failed = await broker.add_task(number=2, state=TaskState.FAILED, error_code="no_image", prompt="a red fox", **ended)
    running = await broker.add_task(number=3)

    printed = Printed(capsys)
    await list_tasks({"q": "fox", "model": "nano-banana", "limit": 5}, as_json=False, watch=False)
    assert [line.split()[0] for line in printed.lines()] == [failed.id]
    await pin_task(done.id)
    assert printed.lines() == [f"{done.id} is kept until it is unpinned or deleted."]
    row = await broker.services.tables.tasks.get(done.id)
    assert row is not None and row.pinned_at is not None
    await unpin_task(done.id)
    (line,) = printed.lines()
    assert re.fullmatch(rf"{done.id} is unpinned: it is deleted at 20\S+\.", line)
    await retry_task(failed.id, as_json=False)
    (line,) = printed.lines()
    assert re.fullmatch(rf"{failed.id} is ordered again as task_\w+\.", line)
    await delete_task(done.id)
    assert printed.lines() == [f"{done.id} is deleted."]
    await delete_task(done.id)
    with pytest.raises(BrokerApiError, match="has not ended"):
        await delete_task(running.id)
    row = await broker.services.tables.tasks.get(running.id)
    assert row is not None and row.state == TaskState.WAITING, "nothing was canceled"


async def test_only_what_prepares_a_first_start_makes_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROKER_PORT", "9")
    with pytest.raises(CommandError, match="right folder"):
        await list_keys(as_json=True)
    await add_key("laptop", owner=None, expires_in_days=None, as_json=True)
    assert "data/broker.db is made" in capsys.readouterr().err
    async with connect_broker() as connection:
        assert not connection.is_running
