"""Folders of files lie apart from each other on the disk, where its file system has that."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.blobs.local import LocalBlobs
from storage.blobs.spreading import TOP_FOLDER, read_flags, spread_subfolders
from storage.ids import new_id

pytestmark = pytest.mark.anyio


def is_spreading(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return bool(read_flags(descriptor) & TOP_FOLDER)
    except OSError:
        return False
    finally:
        os.close(descriptor)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on ext4; the temporary folders of the other tests are in memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        probe = Path(name, "probe")
        probe.mkdir()
        spread_subfolders(probe)
        if not is_spreading(probe):
            pytest.skip("/var/tmp is not on ext4")
        yield Path(name)


async def test_folders_of_other_times_lie_apart_and_those_within_stay_together(disk: Path) -> None:
    root, owner = disk / "blobs", new_id("task", time.time())
    await LocalBlobs(root).new_draft(owner).store(b"x")
    (outer,) = [folder for folder in root.iterdir() if owner.startswith(folder.name)]
    assert (is_spreading(root), is_spreading(outer)) == (True, False)


async def test_root_of_an_earlier_version_gets_the_attribute_with_its_next_folder(disk: Path) -> None:
    root = disk / "blobs"
    (root / ".drafts").mkdir(parents=True)
    await LocalBlobs(root).new_draft("task_1").store(b"x")
    assert is_spreading(root)


def test_file_system_without_the_attribute_is_left_as_it_is(tmp_path: Path) -> None:
    spread_subfolders(tmp_path)
