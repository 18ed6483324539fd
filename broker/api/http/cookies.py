"""The session cookie.

Cookies are read here and not by the framework, whose parser takes seconds for a long header on some Pythons.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import HTTPConnection
from starlette.responses import Response

_NAME: Final = "broker_session"
_SECURE_NAME: Final = f"__Host-{_NAME}"
"""A browser takes it over TLS only, and from this host alone."""
COOKIE_SECONDS: Final = 30 * 86_400
"""How long a browser keeps it; the session may end earlier."""


def is_secure(request: HTTPConnection) -> bool:
    """Return whether the client's own connection has TLS, which may end at a proxy."""
    forwarded = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    return forwarded == "https" or request.scope["scheme"] == "https"


def read_session_cookie(request: HTTPConnection) -> str | None:
    """Return the secret of the session cookie; None without one, or with several."""
    name = _SECURE_NAME if is_secure(request) else _NAME
    pairs = [pair.strip().partition("=") for header in request.headers.getlist("cookie") for pair in header.split(";")]
    values = {value for found, _, value in pairs if found == name}
    return values.pop() if len(values) == 1 else None


def set_session_cookie(request: HTTPConnection, response: Response, secret: str) -> None:
    _set(request, response, secret, COOKIE_SECONDS)


def clear_session_cookie(request: HTTPConnection, response: Response) -> None:
    _set(request, response, "", 0)


def _set(request: HTTPConnection, response: Response, value: str, seconds: int) -> None:
    has_tls = is_secure(request)
    response.set_cookie(
        _SECURE_NAME if has_tls else _NAME,
        value,
        max_age=seconds,
        path="/",
        secure=has_tls,
        httponly=True,
        samesite="lax",
    )
