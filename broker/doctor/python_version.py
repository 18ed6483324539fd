"""Check of the running Python. Also part of every start, so it imports little."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from broker.providers.health import ok, warning

if TYPE_CHECKING:
    from broker.doctor.context import DoctorContext
    from broker.providers.base import Finding

COOKIE_FLAW: Final = "one Cookie header can keep it busy for seconds (CVE-2024-7592)"
NEWER_PYTHON: Final = "use 3.11.10, 3.12.6 or newer"


async def check_python(_: DoctorContext) -> Sequence[Finding]:
    found = platform.python_version()
    if has_cookie_flaw(sys.version_info[:3]):
        return [warning("Python", f"{found}: {COOKIE_FLAW}", NEWER_PYTHON)]
    return [ok("Python", found)]


def has_cookie_flaw(version: tuple[Any, ...]) -> bool:
    return version < (3, 11, 10) or (3, 12) <= version < (3, 12, 6)
