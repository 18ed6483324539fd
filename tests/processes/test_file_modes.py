"""Modes of the files that commands create. `test_cli_admin` has the same test of a running broker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.file_modes import accessible_to_others, modes_below
from tests.support.shell import Shell


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    """Start the processes with the umask of most machines."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("command", [("cleanup",), ("db", "upgrade")])
def test_files_of_a_command_are_accessible_to_its_user_only(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert Shell(tmp_path, {}).run(*command).code == 0
    assert accessible_to_others(tmp_path) == {}
    assert modes_below(tmp_path)["data"] == "700"


def test_group_can_pass_to_the_images_and_read_nothing_else(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"BROKER_BLOB_GROUP_READ": "true"})
    assert shell.run("cleanup").code == 0
    modes = modes_below(tmp_path)
    assert (modes["data"], modes["data/broker.db"], modes["data/secret.key"]) == ("710", "600", "600")
    assert shell.run("cleanup", BROKER_BLOB_URL="file:elsewhere/of/images").code == 0
    assert {modes_below(tmp_path)[path] for path in ("elsewhere", "elsewhere/of")} == {"710"}
