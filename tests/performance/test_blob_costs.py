"""Costs of storing an image in a file: the calls of the file system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
    await blobs.new_draft("first_01").store(b"x")
    sys.addaudithook(note)
    await blobs.new_draft("task_1_01").store(b"x")
    print(*calls)

asyncio.run(main())
"""


def test_small_image_needs_no_call_that_changes_nothing(tmp_path: Path) -> None:
    """Its owner gets a folder, and the draft a name in it; opened are both, and the folder above."""
    command = [sys.executable, "-c", STORE_AND_LIST_CALLS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["os.mkdir", "open", "open", "os.rename", "open"]
