"""Who may come in, by the settings alone; and the Python that opens the door."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from broker.doctor.context import DoctorContext
from broker.doctor.findings import Finding, ok, warning
from broker.net.hosts import is_loopback_host
from broker.settings import Settings

COOKIE_FLAW: Final = "one Cookie header can keep it busy for seconds (CVE-2024-7592)"
NEWER_PYTHON: Final = "use 3.11.10, 3.12.6 or newer"


async def access(context: DoctorContext) -> Sequence[Finding]:
    return list(_access(context.settings)) or [ok("access", _rule(context.settings))]


def _access(settings: Settings) -> Iterator[Finding]:
    wide = not is_loopback_host(settings.host)
    if wide and settings.allow_anonymous:
        found = f"everybody who reaches {settings.host} may spend your credits (BROKER_ALLOW_ANONYMOUS)"
        yield warning("access", found, "set BROKER_API_KEYS instead, unless the network is private")
    elif wide and not settings.api_keys:
        found = f"other machines reach {settings.host}, but may not order: there is no key"
        yield warning("access", found, "set BROKER_API_KEYS")
    for origin in settings.cors_origins:
        parts = urlsplit(origin)
        if parts.scheme == "http" and not is_loopback_host(parts.hostname or ""):
            found = f"pages of {origin} may order, and whoever is on the way can change them"
            yield warning("origins", found, "serve the page over https://, and put that into BROKER_CORS_ORIGINS")


def _rule(settings: Settings) -> str:
    if settings.allow_anonymous:
        return "everybody on this machine may order"
    if settings.api_keys:
        return f"a key is needed ({len(settings.api_keys)} known)"
    return "direct calls from this machine only"


async def python(_: DoctorContext) -> Sequence[Finding]:
    found = platform.python_version()
    if has_cookie_flaw(sys.version_info[:3]):
        return [warning("Python", f"{found}: {COOKIE_FLAW}", NEWER_PYTHON)]
    return [ok("Python", found)]


def has_cookie_flaw(version: tuple[Any, ...]) -> bool:
    return version < (3, 11, 10) or (3, 12) <= version < (3, 12, 6)
