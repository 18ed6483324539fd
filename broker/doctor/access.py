"""Access rules, judged by the settings alone, and the version of Python."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from broker.doctor.context import DoctorContext
from broker.net.hosts import is_loopback_host
from broker.providers.base import Finding
from broker.providers.health import ok, warning
from broker.settings import Settings

COOKIE_FLAW: Final = "one Cookie header can keep it busy for seconds (CVE-2024-7592)"
NEWER_PYTHON: Final = "use 3.11.10, 3.12.6 or newer"


async def check_access(context: DoctorContext) -> Sequence[Finding]:
    return list(_find_exposure(context.settings)) or [ok("access", _describe_rule(context.settings))]


def _find_exposure(settings: Settings) -> Iterator[Finding]:
    is_exposed = not is_loopback_host(settings.host)
    if is_exposed and settings.allow_anonymous:
        found = f"every client that reaches {settings.host} may spend your credits (BROKER_ALLOW_ANONYMOUS)"
        yield warning("access", found, "set BROKER_API_KEYS instead, unless the network is private")
    elif is_exposed and not settings.api_keys:
        found = f"other machines reach {settings.host}, but may not order: no key is set"
        yield warning("access", found, "set BROKER_API_KEYS")
    for origin in settings.cors_origins:
        parts = urlsplit(origin)
        if parts.scheme == "http" and not is_loopback_host(parts.hostname or ""):
            found = f"pages of {origin} may order, and without TLS they can be changed on the way"
            yield warning("origins", found, "serve the page over https://, and put that into BROKER_CORS_ORIGINS")


def _describe_rule(settings: Settings) -> str:
    if settings.allow_anonymous:
        return "every program on this machine may order"
    if settings.api_keys:
        return f"a key is needed ({len(settings.api_keys)} known)"
    return "direct calls from this machine only"


async def check_python(_: DoctorContext) -> Sequence[Finding]:
    found = platform.python_version()
    if has_cookie_flaw(sys.version_info[:3]):
        return [warning("Python", f"{found}: {COOKIE_FLAW}", NEWER_PYTHON)]
    return [ok("Python", found)]


def has_cookie_flaw(version: tuple[Any, ...]) -> bool:
    return version < (3, 11, 10) or (3, 12) <= version < (3, 12, 6)
