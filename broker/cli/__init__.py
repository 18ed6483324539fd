"""Command line: parse the options, call the broker, print.

`commands` is the only module that is imported at once, so that `--help` is quick; each command imports its own module
when it runs. Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import signal
from enum import IntEnum
from typing import Final

TERMINATION_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class ExitCode(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    NOT_DONE = 1
    UNAVAILABLE = 2
    """Wrong settings, or a database or store that cannot be used."""
    INTERRUPTED = 130
