"""API authentication: a configured key, anonymous access by setting, or a direct call from this machine.

Web pages and tunnels reach the broker over loopback too. A call from this machine therefore needs a loopback `Host`
(a rebound name has another), no header of a proxy, and no sign that a browser sent it for another site.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.requests import HTTPConnection

from broker.errors import ApiError
from broker.net.hosts import is_loopback_host
from broker.settings import Settings

_LOOPBACK_HOST: Final = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_FORWARDED: Final = re.compile(r"forwarded|via|(x-forwarded|cf|ngrok)-.*")
_AUTHORIZATION: Final = re.compile(r"([A-Za-z0-9-]+) +([^ ]+) *")
_OWN_SITES: Final = frozenset({"same-origin", "none"})


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The sender of a request."""

    name: str
    """Owner of rate limits and idempotency keys; stable, and not a secret."""
    trusted: bool


UNTRUSTED: Final = Caller(name="anonymous", trusted=False)


def require_trusted(caller: Caller) -> None:
    """Raise `ApiError("unauthorized")` unless the caller is trusted."""
    if not caller.trusted:
        raise ApiError(
            "unauthorized",
            "This needs a key: send 'Authorization: Bearer <key>' with one of BROKER_API_KEYS. "
            "Without configured keys only direct calls from this machine are served.",
        )


@dataclass(frozen=True, kw_only=True)
class KeyPlaces:
    """Where the clients of a dialect send their key; `Authorization: Bearer` is understood everywhere."""

    schemes: tuple[str, ...] = ()
    """Other schemes of `Authorization`, in lower case."""
    headers: tuple[str, ...] = ()
    """Headers, in lower case."""
    query: tuple[str, ...] = ()
    """Query parameters; they never reach a log."""
    has_key_ids: bool = False
    """A key may have an id before it, which is not read: `<id>:<key>`."""


NATIVE_PLACES: Final = KeyPlaces()


class Authenticator:
    """The rule by which a caller is known; dialects differ in the places of the key."""

    def __init__(self, settings: Settings, secret: bytes, places: KeyPlaces = NATIVE_PLACES) -> None:
        self._places = places
        self._schemes = frozenset({"bearer", *places.schemes})
        self._secret = secret
        """Derives a caller's name from its key; the name in the database does not reveal the key."""
        self._keys = [self._digest(key.get_secret_value()) for key in settings.api_keys]
        self._anonymous = settings.allow_anonymous
        self._origins = frozenset(settings.cors_origins)

    def authenticate(self, request: HTTPConnection) -> Caller:
        """Return the caller of a request, `UNTRUSTED` if it is not trusted. Does not read the body."""
        key = self._known_key(request)
        if key is not None:
            return Caller(name=f"key:{key.hex()[:8]}", trusted=True)
        if self._anonymous:
            return Caller(name="anonymous", trusted=True)
        if not self._keys and self._is_local(request):
            return Caller(name="local", trusted=True)
        return UNTRUSTED

    def _known_key(self, request: HTTPConnection) -> bytes | None:
        offered = self._offered_keys(request)
        if len(offered) != 1:
            return None
        text = offered.pop()
        spellings = {text, text.partition(":")[2]} if self._places.has_key_ids else {text}
        digests = [self._digest(spelling) for spelling in spellings]
        known = [key for key in self._keys for digest in digests if hmac.compare_digest(key, digest)]
        return known[0] if known else None

    def _offered_keys(self, request: HTTPConnection) -> set[str]:
        """Return the keys that a request holds; an empty one for a header that is given twice."""
        headers = [_scheme_token(request.headers.getlist("authorization"), self._schemes)]
        for name in self._places.headers:
            values = request.headers.getlist(name)
            headers += [_as_utf8(values[0]) if len(values) == 1 else ""] if values else []
        queries = [value for name in self._places.query for value in request.query_params.getlist(name)]
        return {key for key in (*headers, *queries) if key is not None}

    def _digest(self, key: str) -> bytes:
        return hmac.new(self._secret, b"api-key.v1:" + key.encode("utf-8", "replace"), hashlib.sha256).digest()

    def _is_local(self, request: HTTPConnection) -> bool:
        hosts = request.headers.getlist("host")
        return (
            is_loopback_host((request.scope.get("client") or ("",))[0])
            and len(hosts) == 1
            and _LOOPBACK_HOST.fullmatch(hosts[0]) is not None
            and not is_forwarded(request)
            and self._is_same_site(request, hosts[0])
        )

    def _is_same_site(self, request: HTTPConnection, host: str) -> bool:
        """Return False if a header says that another web site sent it, unless that is one of BROKER_CORS_ORIGINS."""
        origins = request.headers.getlist("origin")
        if origins and all(origin in self._origins for origin in origins):
            return True
        ours = f"{request.scope['scheme']}://{host}".lower()
        sites = request.headers.getlist("sec-fetch-site")
        return all(site.strip().lower() in _OWN_SITES for site in sites) and all(o.lower() == ours for o in origins)


def is_forwarded(request: HTTPConnection) -> bool:
    """Return whether a proxy or a tunnel has sent a request on."""
    return any(_FORWARDED.fullmatch(name) for name in request.headers)


def _scheme_token(headers: Sequence[str], schemes: Collection[str]) -> str | None:
    """Return the token of the only Authorization header; None without one, empty if it is not understood."""
    if not headers:
        return None
    match = _AUTHORIZATION.fullmatch(headers[0]) if len(headers) == 1 else None
    return _as_utf8(match[2]) if match and match[1].lower() in schemes else ""


def _as_utf8(header: str) -> str:
    return header.encode("latin-1").decode("utf-8", "replace")
