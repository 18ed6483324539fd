"""Standard input, output and error that are open."""

from __future__ import annotations

import os
import sys
from typing import Final

STANDARD_OUTPUT: Final = 1
STANDARD_ERROR: Final = 2


def open_standard_streams() -> None:
    """Open those that the caller has closed on the null device.

    Otherwise a socket of the event loop gets such a number, and libuv aborts the process when it closes it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(STANDARD_OUTPUT, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(STANDARD_ERROR, "w", closefd=False)
