"""Exit codes of every command."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    NOT_DONE = 1
    UNAVAILABLE = 2
    """Wrong settings, or a database or store that cannot be used."""
    INTERRUPTED = 130
