"""Modes of the files below a folder."""

from __future__ import annotations

import stat
from pathlib import Path


def modes_below(folder: Path) -> dict[str, str]:
    """Return the mode of every file and folder, by its path."""
    return {str(path.relative_to(folder)): f"{stat.S_IMODE(path.stat().st_mode):o}" for path in folder.rglob("*")}


def accessible_to_others(folder: Path) -> dict[str, str]:
    """Return what other users than the owner may use, by its path."""
    return {path: mode for path, mode in modes_below(folder).items() if int(mode, 8) & 0o077}
