"""URL parsing and the rules on what may be dialed, without I/O.

A URL is parsed once, here, into a `ParsedUrl`, and the very parts that were checked are dialed and sent: a URL that two
parsers read differently is a hole.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import quote, urljoin

from broker.errors import EgressBlocked
from broker.net.hosts import IP, bracket_host, is_local_name, is_public_ip, parse_ip

MAX_URL_LENGTH: Final = 8192
MAX_SHOWN_PATH_LENGTH: Final = 200
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_VISIBLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))


@dataclass(frozen=True, kw_only=True)
class ParsedUrl:
    """An http or https URL in its parts."""

    scheme: str
    host: str
    """Lower case, without a trailing dot; IPv6 without brackets."""
    port: int
    target: str
    """Path and query, as given."""

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        return _authority(self.scheme, self.host, self.port)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    def __str__(self) -> str:
        """Return the URL for logs and messages: without the query, which may hold a signature."""
        path = self.target.partition("?")[0]
        shown = path if len(path) <= MAX_SHOWN_PATH_LENGTH else path[:MAX_SHOWN_PATH_LENGTH] + "…"
        return f"{self.scheme}://{self.authority}{shown}"

    def follow_redirect(self, location: str) -> ParsedUrl:
        """Return the target of a redirect; raise `EgressBlocked` for one from https to http."""
        try:
            target = parse_url(urljoin(self.url, location))
        except ValueError:
            raise EgressBlocked(f"{self}: redirected to an address that cannot be read") from None
        if (self.scheme, target.scheme) == ("https", "http"):
            raise EgressBlocked(f"{self}: redirected from https to http")
        return target


def parse_url(url: str) -> ParsedUrl:
    """Parse a URL; raise `EgressBlocked` for one that is malformed, ambiguous or neither http nor https."""
    if len(url) > MAX_URL_LENGTH:
        raise EgressBlocked(f"the address is longer than {MAX_URL_LENGTH} characters")
    if _UNSAFE.search(url):
        raise EgressBlocked("the address has control characters, spaces or backslashes")
    match = _URL.fullmatch(url)
    if match is None or match[1].lower() not in DEFAULT_PORTS:
        raise EgressBlocked("the address does not begin with http:// or https://")
    scheme, (host, port) = match[1].lower(), _parse_authority(match[2])
    target = (match[3] or "/") + (match[4] or "")
    if not target.isascii():
        try:
            target = quote(target, safe=_VISIBLE_ASCII)
        except UnicodeEncodeError:
            raise EgressBlocked("the address is not valid Unicode") from None
    return ParsedUrl(scheme=scheme, host=host, port=port or DEFAULT_PORTS[scheme], target=target)


def redact_url(url: str) -> str:
    """Return scheme://host/path, without user, query and fragment; never raises."""
    try:
        return str(parse_url(url))
    except EgressBlocked:
        return "(an unreadable address)"


@lru_cache(maxsize=256)  # few hosts have all the results
def _authority(scheme: str, host: str, port: int) -> str:
    host = bracket_host(host)
    return host if port == DEFAULT_PORTS[scheme] else f"{host}:{port}"


@lru_cache(maxsize=256)  # the same
def _parse_authority(text: str) -> tuple[str, int | None]:
    if "@" in text:
        raise EgressBlocked("the address has a user name in it")
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise EgressBlocked("the address has no plain host name (write names of other scripts in punycode)")
    port = int(match[2]) if match[2] else None
    if port is not None and not 0 < port < 65536:
        raise EgressBlocked("the address has an impossible port")
    return _normalize_host(match[1].lower()), port


def _normalize_host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise EgressBlocked("the address has a malformed IPv6 host") from None
    host = text.removesuffix(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, host.split("."))):
        raise EgressBlocked("the address has a malformed host name")
    # 127.1, 0x7f.1, 017700000001 and 2130706433 all mean 127.0.0.1 to some resolver.
    if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]) and parse_ip(host) is None:
        raise EgressBlocked("the host is a number, but not a plain IPv4 address")
    return host


class EgressPolicy:
    """Rules on what may be dialed."""

    def __init__(
        self,
        *,
        allow: Collection[str] = (),
        ports: Iterable[int] = (80, 443),
        exemption: str = "BROKER_DOWNLOAD_ALLOW",
    ) -> None:
        """Raise ValueError for a malformed entry.

        allow: `host` (any port) or `host:port`, exempt from the rules on names, private addresses and ports, never
        from those on scheme and user names.
        exemption: the environment variable that fills `allow`, for error messages.
        """
        self._allow = frozenset(map(_parse_allowed, allow))
        self._ports = frozenset(ports)
        self._exemption = exemption

    def check_without_dns(self, url: ParsedUrl) -> None:
        """Raise `EgressBlocked` for what can be rejected without a DNS lookup."""
        if self.is_allowlisted(url.host, url.port):
            return
        if url.port not in self._ports:
            raise EgressBlocked(f"{url}: port {url.port} is not allowed")
        ip = parse_ip(url.host)
        if ip is not None:
            self._check_ip(ip, url.host)
        elif is_local_name(url.host):
            raise EgressBlocked(f"{url}: the host is a name of a private network")

    def is_allowlisted(self, host: str, port: int) -> bool:
        return not self._allow.isdisjoint({(host, None), (host, port)})

    def resolve(self, host: str, port: int, answers: Sequence[str]) -> list[str]:
        """Return the addresses to dial: all that the name server gave; raise `EgressBlocked` if one of them is bad."""
        if not answers:
            raise EgressBlocked(f"{host}: the name has no address")
        is_allowlisted = self.is_allowlisted(host, port)
        addresses = []
        for answer in answers:
            ip = parse_ip(answer)
            if ip is None:
                raise EgressBlocked(f"{host}: the name server did not answer with an address")
            if not is_allowlisted:
                self._check_ip(ip, host)
            addresses.append(str(ip))
        return addresses

    def _check_ip(self, ip: IP, host: str) -> None:
        # The address itself stays out of the message: a caller must not learn the names of our network.
        if not is_public_ip(ip):
            raise EgressBlocked(f"{host}: a private or special address ({self._exemption} can exempt it)")


def _parse_allowed(entry: str) -> tuple[str, int | None]:
    """Parse `minio:9000`, `cdn.example.com`, `[::1]:8080` or `::1` into host and port (None: any port)."""
    text = entry.strip()
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    try:
        return _parse_authority(text)
    except EgressBlocked:
        raise ValueError(f"{entry!r} is neither host nor host:port") from None
