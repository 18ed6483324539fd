"""Who is trusted: a known key, everybody on a private network, or somebody at this very machine.

A caller at this machine must not be a web page or the far end of a tunnel: those reach us over loopback, too. So the
`Host` must be loopback (a rebound name is not), nothing may say that the request was forwarded, and nothing may say
that a browser sent it for another site.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.requests import HTTPConnection

from broker.errors import Refusal
from broker.net.hosts import is_loopback_host
from broker.settings import Settings

_LOOPBACK_HOST: Final = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_FORWARDED: Final = re.compile(r"forwarded|via|(x-forwarded|cf|ngrok)-.*", re.IGNORECASE)
_BEARER: Final = re.compile(r"bearer +([^ ]+) *", re.IGNORECASE)
_OWN_SITES: Final = frozenset({"same-origin", "none"})


@dataclass(frozen=True, kw_only=True)
class Caller:
    """name: whose pace and whose idempotency keys; stable, and no secret."""

    name: str
    trusted: bool


STRANGER: Final = Caller(name="anonymous", trusted=False)


class Access:
    """The rule of the house. secret: turns a key into its name, so that neither can be had from the database."""

    def __init__(self, settings: Settings, secret: bytes) -> None:
        self._secret = secret
        self._keys = [self._digest(key.get_secret_value()) for key in settings.api_keys]
        self._anonymous = settings.allow_anonymous
        self._origins = frozenset(settings.cors_origins)

    def caller(self, request: HTTPConnection) -> Caller:
        key = self._known_key(request)
        if key is not None:
            return Caller(name=f"key:{key.hex()[:8]}", trusted=True)
        if self._anonymous:
            return Caller(name="anonymous", trusted=True)
        if not self._keys and self._from_here(request):
            return Caller(name="local", trusted=True)
        return STRANGER

    def require(self, request: HTTPConnection) -> Caller:
        """Raises `Refusal("unauthorized")` unless the caller is trusted; ask before the body is read."""
        caller = self.caller(request)
        if not caller.trusted:
            raise Refusal(
                "unauthorized",
                "This needs a key: send 'Authorization: Bearer <key>' with one of BROKER_API_KEYS. "
                "Without configured keys only direct calls from this machine are served.",
            )
        return caller

    def _known_key(self, request: HTTPConnection) -> bytes | None:
        offered = _bearer(_values(request, b"authorization"))
        if offered is None:
            return None
        digest = self._digest(offered)
        known = [key for key in self._keys if hmac.compare_digest(key, digest)]
        return known[0] if known else None

    def _digest(self, key: str) -> bytes:
        return hmac.new(self._secret, b"api-key.v1:" + key.encode("utf-8", "replace"), hashlib.sha256).digest()

    def _from_here(self, request: HTTPConnection) -> bool:
        hosts = _values(request, b"host")
        return (
            is_loopback_host((request.scope.get("client") or ("",))[0])
            and len(hosts) == 1
            and _LOOPBACK_HOST.fullmatch(hosts[0]) is not None
            and not any(_FORWARDED.fullmatch(name) for name in _names(request))
            and self._sent_by_us(request, hosts[0])
        )

    def _sent_by_us(self, request: HTTPConnection, host: str) -> bool:
        """Nothing says that another web site sent it. A site of BROKER_CORS_ORIGINS may: its browser says so, too."""
        origins = _values(request, b"origin")
        if origins and all(origin in self._origins for origin in origins):
            return True
        ours = f"{request.scope['scheme']}://{host}".lower()
        sites = _values(request, b"sec-fetch-site")
        return all(site.strip().lower() in _OWN_SITES for site in sites) and all(o.lower() == ours for o in origins)


def _names(request: HTTPConnection) -> Iterator[str]:
    return (name.decode("latin-1") for name, _ in request.scope["headers"])


def _values(request: HTTPConnection, wanted: bytes) -> list[str]:
    """All values of a header, however its name is written."""
    return [value.decode("latin-1") for name, value in request.scope["headers"] if name.lower() == wanted]


def _bearer(headers: Sequence[str]) -> str | None:
    """The key of the one Authorization header; two of them are nobody's."""
    match = _BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
    return match[1].encode("latin-1").decode("utf-8", "replace") if match else None
