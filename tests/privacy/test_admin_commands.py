"""The commands of the operator show no content of other accounts. A command that is not listed here fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import typer.main
from anyio.from_thread import start_blocking_portal
from typer.core import TyperGroup
from typer.testing import CliRunner

from broker.cli.commands import app
from storage.ids import shorten_id
from storage.states import TaskState
from tests.privacy.canaries import TERMINAL_CONTROLS, Planted, find_leaks
from tests.privacy.test_admin_views import KEY, planted_broker
from tests.support.log_lines import restored_logging

SECRET: Final = "secret-of-the-broker"
SILENT: Final = {
    *("demo", "serve", "worker", "sandbox", "generate", "mcp", "cleanup", "doctor", "db status", "db upgrade"),
    *("providers", "providers pause", "providers resume", "secrets rotate"),
    *("keys add", "keys revoke", "pin", "unpin", "retry", "delete"),
    *(f"users {name}" for name in ("add", "delete", "disable", "enable", "password", "quota")),
}
"""Commands that print nothing of what accounts have made, or act on an id that the operator was given."""


def calls_of(planted: Planted) -> dict[str, list[str]]:
    """Return the arguments of every other command."""
    task = next(task for task in planted.tasks if task.state == TaskState.WAITING).id
    callback, delivery = planted.callbacks[0], planted.deliveries[0]
    return {
        "tasks": ["--limit", "5"],
        "task": [task, "--attempts"],  # without it, it is what everyone gets who has the id
        "cancel": [task],
        "callbacks": [],
        "callbacks show": [callback],
        "callbacks replay": [callback],
        "callbacks export": [callback],
        "webhooks": [],
        "webhooks show": [delivery],
        "webhooks replay": [delivery],
        "costs": ["--by", "user"],
        "keys list": [],
        "users list": [],
        "webhooks secret": ["--owner", "admin"],
    }


@pytest.fixture
def own_logs() -> Iterator[None]:
    """Keep what a command configures out of other tests."""
    with restored_logging():
        yield


def list_commands() -> set[str]:
    """Return the name of every command, with that of its group."""

    def walk(group: TyperGroup, prefix: str) -> Iterator[str]:
        for name, command in group.commands.items():
            if isinstance(command, TyperGroup):
                yield from walk(command, f"{prefix}{name} ")
            if not isinstance(command, TyperGroup) or command.invoke_without_command:
                yield f"{prefix}{name}"

    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return set(walk(root, ""))


@pytest.mark.usefixtures("own_logs")
def test_no_command_shows_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a running broker, because opening its database takes most of the time of a command."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(planted_broker(tmp_path, sockets=True, secret_key=SECRET)) as (
            broker,
            (planted,),
            _,
        ),
    ):
        calls, shown = calls_of(planted), 0
        assert list_commands() == SILENT | calls.keys()
        monkeypatch.chdir(tmp_path)
        for name, value in (("API_KEYS", KEY), ("PORT", str(broker.port)), ("DATA_DIR", "elsewhere")):
            monkeypatch.setenv(f"BROKER_{name}", value)
        monkeypatch.setenv("SECRET_KEY", SECRET)
        for command, args in calls.items():
            ended = CliRunner().invoke(app, [*command.split(), *args])
            assert ended.exit_code == (command == "callbacks export"), (command, ended.output)
            leaks = [leak for leak in find_leaks(ended.output, planted) if leak not in args]
            leaks += [char for char in TERMINAL_CONTROLS if char in ended.output]
            assert leaks == [], (command, ended.output)
            if command == "webhooks secret":
                admin = portal.call(broker.services.tables.users.get_by_name, "admin")
                assert admin is not None
                assert broker.services.signing_keys.secret_of(admin.id) in ended.output
            shown += any(shorten_id(task.id) in ended.output for task in planted.tasks)
    assert shown >= 6  # the canaries had a chance
