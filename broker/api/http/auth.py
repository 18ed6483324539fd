"""API authentication: every way to be known ends in one `Principal`.

A key of the settings, an API key or an access token in a header; a session cookie; anonymous access by setting; or a
direct call from this machine, while there are neither keys nor users.

Web pages and tunnels reach the broker over loopback too. A call from this machine therefore needs a loopback `Host`
(a rebound name has another), no header of a proxy, and no sign that a browser sent it for another site.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from starlette.requests import HTTPConnection

from broker.accounts.credentials import Credentials
from broker.api.http.cookies import is_secure, read_session_cookie
from broker.api.http.identity import header_table, header_value, header_values
from broker.errors import ApiError
from broker.net.hosts import is_loopback_host, is_private_host
from broker.principal import Principal, house_principal
from broker.services import Services
from broker.settings import Settings

_LOOPBACK_HOST: Final = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_FORWARDED: Final = re.compile(r"^(?:forwarded|via|(?:x-forwarded|cf|ngrok)-.*)$", re.MULTILINE)
_AUTHORIZATION: Final = re.compile(r"([A-Za-z0-9-]+) +([^ ]+) *")
_OWN_SITES: Final = frozenset({"same-origin", "none"})


_UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def require_principal(principal: Principal | None) -> Principal:
    """Return the principal. Raises `ApiError("unauthorized")` without one."""
    if principal is None:
        raise ApiError(
            "unauthorized",
            "This needs a key: send 'Authorization: Bearer <key>' with one of BROKER_API_KEYS or with an API key, or "
            "log in. Without keys and users only direct calls from this machine are served.",
        )
    return principal


def require_admin(principal: Principal) -> None:
    """Raise `ApiError("forbidden")` unless the principal is an admin."""
    if not principal.is_admin:
        raise ApiError("forbidden", "This is for admins. Ask the operator of this broker.")


def require_same_site(request: HTTPConnection, origins: Collection[str] = ()) -> None:
    """Raise `ApiError("forbidden")` if a header says that another web site sent the request.

    For requests that log in: another page must neither log the browser of a user in, nor guess passwords through it.
    origins: of other web sites that may.
    """
    sent_by = header_values(request.scope, "origin")
    if sent_by and all(origin in origins for origin in sent_by):
        return
    if _is_own_page(request) is False:
        raise ApiError("forbidden", "Another web site sent this request: open this broker's own page instead.")


def _is_own_page(request: HTTPConnection) -> bool | None:
    """Return whether our own page, or the user in the address bar, sent a request; None if no header says it."""
    sites = [site.strip().lower() for site in header_values(request.scope, "sec-fetch-site")]
    if sites:
        return all(site in _OWN_SITES for site in sites)
    origins = header_values(request.scope, "origin")
    own = f"{'https' if is_secure(request) else 'http'}://{header_value(request, 'host')}".lower()
    return all(origin.lower() == own for origin in origins) if origins else None


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


@dataclass(frozen=True, kw_only=True)
class Authenticator:
    """The rule by which a principal is known; dialects differ in the places of the key."""

    settings: Settings
    secret: bytes
    """Derives an owner from a configured key; the owner in the database does not reveal the key."""
    credentials: Credentials
    places: KeyPlaces = NATIVE_PLACES

    @classmethod
    def from_services(cls, services: Services, places: KeyPlaces = NATIVE_PLACES) -> Authenticator:
        return cls(
            settings=services.settings,
            secret=services.tokens.secret,
            credentials=services.credentials,
            places=places,
        )

    async def authenticate(self, request: HTTPConnection) -> Principal | None:
        """Return the principal of a request, or None. Does not read the body.

        A key counts before a cookie. A wrong one leaves the trust in direct calls, because SDKs cannot send none.
        Raises `ApiError`: unauthorized for a disabled account, forbidden for a cookie that another web site made the
        browser send.
        """
        headers = header_table(request.scope)
        offered = self._offered_keys(request, headers)
        if offered and (principal := await self._find_by_key(offered)) is not None:
            return principal
        cookie = read_session_cookie(request) if not offered and "cookie" in headers else None
        if cookie is not None and (principal := await self.credentials.find_by_cookie(cookie)) is not None:
            self._require_own_page(request)
            return principal
        if self.settings.allow_anonymous:
            return None if await self.credentials.has_users() else self._house("anonymous")
        is_direct = not self.settings.api_keys and is_direct_call(request, self.settings.cors_origins)
        if not is_direct or await self.credentials.has_accounts():
            return None
        return self._local

    async def _find_by_key(self, offered: set[str]) -> Principal | None:
        if len(offered) != 1:
            return None
        text = offered.pop()
        spellings = {text, text.partition(":")[2]} if self.places.has_key_ids else {text}
        if (digest := self._configured_key(spellings)) is not None:
            return self._house(f"key:{digest.hex()[:8]}")
        for spelling in spellings:
            if (principal := await self.credentials.find_by_bearer(spelling)) is not None:
                return principal
        return None

    def _house(self, name: str) -> Principal:
        return house_principal(name, sees_content=self.settings.admin_sees_content)

    @cached_property
    def _local(self) -> Principal:
        return self._house("local")

    @cached_property
    def _configured(self) -> list[bytes]:
        return [self._digest(key.get_secret_value()) for key in self.settings.api_keys]

    def _configured_key(self, spellings: Collection[str]) -> bytes | None:
        digests = [self._digest(spelling) for spelling in spellings]
        known = [key for key in self._configured for digest in digests if hmac.compare_digest(key, digest)]
        return known[0] if known else None

    def _require_own_page(self, request: HTTPConnection) -> None:
        """Refuse an unsafe request with a cookie unless our own page, or the user in the address bar, sent it."""
        if request.scope["method"] not in _UNSAFE:
            return
        if not _is_own_page(request):
            raise ApiError(
                "forbidden",
                "A request with a session cookie must come from this broker's own page: send its Origin or "
                "Sec-Fetch-Site header, or use an API key.",
            )

    def _offered_keys(self, request: HTTPConnection, headers: Mapping[str, Sequence[str]]) -> set[str]:
        """Return the keys that a request holds; an empty one for a header that is given twice."""
        keys, places = set[str](), self.places
        if values := headers.get("authorization"):
            keys.add(_scheme_token(values, {"bearer", *places.schemes}))
        for name in places.headers:
            if values := headers.get(name):
                keys.add(_as_utf8(values[0]) if len(values) == 1 else "")
        for name in places.query:
            keys.update(request.query_params.getlist(name))
        return keys

    def _digest(self, key: str) -> bytes:
        return hmac.new(self.secret, b"api-key.v1:" + key.encode("utf-8", "replace"), hashlib.sha256).digest()


def is_direct_call(request: HTTPConnection, origins: Collection[str] = ()) -> bool:
    """Return whether a program on this machine, or our own page in its browser, sent a request straight to us.

    origins: of other web sites that may.
    """
    scope, headers = request.scope, header_table(request.scope)
    hosts, client = headers.get("host", ()), scope.get("client") or ("",)
    if (
        len(hosts) != 1
        or scope.get("http_version") == "1.0"  # of a proxy that adds no header, like nginx by default
        or not _is_local(client[0], hosts[0], "\n".join(headers))
    ):
        return False
    sent_by, sites = headers.get("origin", ()), headers.get("sec-fetch-site", ())
    return not (sent_by or sites) or _is_same_site(sent_by, sites, f"{scope['scheme']}://{hosts[0]}", origins)


@lru_cache(maxsize=64)  # clients send the same headers with each request
def _is_local(peer: str, host: str, names: str) -> bool:
    """Return whether a program on this machine sent a request to a loopback name, without a proxy in between.

    names: of the headers.
    """
    return is_loopback_host(peer) and _LOOPBACK_HOST.fullmatch(host) is not None and not _is_of_proxy(names)


def _is_same_site(sent_by: Sequence[str], sites: Sequence[str], own: str, allowed: Collection[str]) -> bool:
    """Return False if a header says that another web site sent a request, unless that is one of the allowed origins.

    sent_by: values of Origin. sites: those of Sec-Fetch-Site. own: our origin, as the client spells it.
    """
    if sent_by and all(origin in allowed for origin in sent_by):
        return True
    return all(site.strip().lower() in _OWN_SITES for site in sites) and all(
        origin.lower() == own.lower() for origin in sent_by
    )


def client_address(request: HTTPConnection) -> str:
    """Return the address of the client: of the peer or, behind a proxy of our own network, the one the proxy saw.

    Only the last address of `X-Forwarded-For` is the proxy's; those before it are the client's own words.
    """
    peer = str((request.scope.get("client") or ("",))[0])
    forwarded = header_values(request.scope, "x-forwarded-for")
    if not forwarded or not is_private_host(peer):
        return peer
    return forwarded[-1].rpartition(",")[2].strip()[:64] or peer


def is_forwarded(request: HTTPConnection) -> bool:
    """Return whether a proxy or a tunnel has sent a request on."""
    return _is_of_proxy("\n".join(header_table(request.scope)))


def is_from_own_proxy(request: HTTPConnection) -> bool:
    """Return whether a proxy or a tunnel has sent a request on, from an address of our own network."""
    return is_forwarded(request) and is_private_host(str((request.scope.get("client") or ("",))[0]))


@lru_cache(maxsize=64)  # clients send the same headers with each request
def _is_of_proxy(names: str) -> bool:
    return _FORWARDED.search(names) is not None


def _scheme_token(headers: Sequence[str], schemes: Collection[str]) -> str:
    """Return the token of the only Authorization header; empty if it is not understood."""
    match = _AUTHORIZATION.fullmatch(headers[0]) if len(headers) == 1 else None
    return _as_utf8(match[2]) if match and match[1].lower() in schemes else ""


def _as_utf8(header: str) -> str:
    return header.encode("latin-1").decode("utf-8", "replace")
