"""Costs of storing an image in a file: the calls of the file system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STORE_AND_LIST_CALLS = """
import asyncio, sys
from pathlib import Path
from storage.blobs.local import LocalBlobs

calls = []
PREFIX = sys.argv[1]

def note(event, args):
    if event in ("os.mkdir", "os.rename", "os.remove", "os.listdir", "os.fsync", "open", "fcntl.flock"):
        calls.append(event)

async def main():
    blobs = LocalBlobs(Path(PREFIX))
    first, second = sys.argv[2:]
    await blobs.new_draft(first).store(b"x")
    sys.addaudithook(note)
    await blobs.new_draft(second).store(b"x")
    print(*calls)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("first", "second", "calls"),
    [
        ("first_01", "task_1_01", ["os.mkdir", "open", "open", "os.rename", "open"]),
        (f"task_0190ab12345{'0' * 32}", f"task_0190ab12fff{'1' * 32}", ["open", "os.rename"]),
    ],
    ids=["own folder", "shared folder"],
)
def test_small_image_needs_no_call_that_changes_nothing(
    tmp_path: Path, first: str, second: str, calls: list[str]
) -> None:
    """The draft is opened and gets its name. An owner without a shared folder gets one, which is opened and synced."""
    command = [sys.executable, "-c", STORE_AND_LIST_CALLS, str(tmp_path), first, second]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == calls
