"""The session cookie.

Cookies are read here and not by the framework, whose parser takes seconds for a long header on some Pythons.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import HTTPConnection
from starlette.responses import Response

from broker.api.http.identity import header_value, header_values

_SESSION: Final = "broker_session"
_DEVICE: Final = "broker_device"
"""Says only that a user has logged in with this browser before, see `broker.accounts.throttle`."""
_SECURE_PREFIX: Final = "__Host-"
"""A browser takes such a cookie over TLS only, and from this host alone."""
COOKIE_SECONDS: Final = 30 * 86_400
"""Time that a browser keeps the cookie of a session; the session may end earlier."""
DEVICE_COOKIE_SECONDS: Final = 180 * 86_400


def is_secure(request: HTTPConnection) -> bool:
    """Return whether the client's own connection has TLS, which may end at a proxy."""
    forwarded = header_value(request, "x-forwarded-proto").partition(",")[0].strip().lower()
    return forwarded == "https" or request.scope["scheme"] == "https"


def read_session_cookie(request: HTTPConnection) -> str | None:
    """Return the secret of the session cookie; None without one, or with several."""
    return _read(request, _SESSION)


def read_device_cookie(request: HTTPConnection) -> str | None:
    return _read(request, _DEVICE)


def set_session_cookie(request: HTTPConnection, response: Response, secret: str) -> None:
    _set(request, response, _SESSION, secret, COOKIE_SECONDS)


def clear_session_cookie(request: HTTPConnection, response: Response) -> None:
    _set(request, response, _SESSION, "", 0)


def set_device_cookie(request: HTTPConnection, response: Response, secret: str) -> None:
    _set(request, response, _DEVICE, secret, DEVICE_COOKIE_SECONDS)


def _full_name(request: HTTPConnection, name: str) -> str:
    return f"{_SECURE_PREFIX}{name}" if is_secure(request) else name


def _read(request: HTTPConnection, name: str) -> str | None:
    headers = header_values(request.scope, "cookie")
    if not headers:
        return None
    wanted = _full_name(request, name)
    pairs = [pair.strip().partition("=") for header in headers for pair in header.split(";")]
    values = {value for found, _, value in pairs if found == wanted}
    return values.pop() if len(values) == 1 else None


def _set(request: HTTPConnection, response: Response, name: str, value: str, seconds: int) -> None:
    response.set_cookie(
        _full_name(request, name),
        value,
        max_age=seconds,
        path="/",
        secure=is_secure(request),
        httponly=True,
        samesite="lax",
    )
