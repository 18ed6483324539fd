"""Modes of the files that the processes of a broker create: nothing is readable by other users of the machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.shell import Shell, serving

SQLITE_FILES = {"broker.db", "broker.db-wal", "broker.db-shm"}


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    """Start the processes with the umask of most machines."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes_below(folder: Path) -> dict[str, str]:
    """Return the mode of every file and folder, by its path."""
    return {str(path.relative_to(folder)): f"{stat.S_IMODE(path.stat().st_mode):o}" for path in folder.rglob("*")}


def accessible_to_others(folder: Path) -> dict[str, str]:
    return {path: mode for path, mode in modes_below(folder).items() if int(mode, 8) & 0o077}


def test_files_of_a_broker_are_accessible_to_its_user_only(tmp_path: Path) -> None:
    """Database, log, images, secret, and the files that commands save."""
    with serving(Shell(tmp_path, {"BROKER_LOG_DIR": "logs"}), "serve", "--port", "0") as (_, address):
        shell = Shell(tmp_path, {"BROKER_PORT": address.rpartition(":")[2]})
        assert shell.run("generate", "a red fox", "-o", "fox.png").code == 0
        callback = shell.run("callbacks").out.split()[0]
        assert shell.run("callbacks", "export", callback, "-o", "callback.json").code == 0
        assert accessible_to_others(tmp_path) == {}
        made = {Path(path).name for path in modes_below(tmp_path)}
    assert {*SQLITE_FILES, "secret.key", "app.log", "fox.png", "callback.json", "sandbox"} <= made
    assert list((tmp_path / "data" / "blobs").glob("*/task_*/*"))


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
