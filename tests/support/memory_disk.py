"""Temporary files in memory, where there is plenty of it: a disk takes ten times as long to create a database."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
MIN_FREE_BYTES = 8 * 2**30
"""A run needs about two GiB, and the machine has other things to do."""


def keep_temporary_files_in_memory() -> None:
    """Let temporary folders of this process and its children be in memory, unless TMPDIR says where they are."""
    if os.environ.get("TMPDIR") or not os.access(MEMORY, os.W_OK):
        return
    disk = os.statvfs(MEMORY)
    if disk.f_bavail * disk.f_frsize >= MIN_FREE_BYTES:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # decided again at the next use
