"""Which addresses we talk to when somebody else chose them; pure, no I/O.

What: a URL is read once, here, into a `Link`, and the very parts that were checked are dialled and sent.
Why: a URL that two parsers read differently is a hole, and `ipaddress.is_global` calls many special networks public
(NAT64, 6to4, site-local, multicast, a metadata address), so the tables below are our own.
Reconsider when the standard library's tables are current in every Python we support.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import quote, urljoin

from broker.errors import EgressRefused

IP: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL: Final = 8192
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_VISIBLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_LOCAL_SUFFIXES = ("localhost", "local", "internal", "lan", "home.arpa", "intranet")

# IANA special-purpose registries, multicast, and Azure's wire server, which sits at a public-looking address.
_V4_SPECIAL = tuple(
    ipaddress.IPv4Network(text)
    for text in """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12
    192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24
    198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4""".split()
)
# Only 2000::/3 is handed out; inside it Teredo and ORCHID (2001::/23), documentation, 6to4 and AS112 are not hosts.
_V6_GLOBAL = ipaddress.IPv6Network("2000::/3")
_V6_SPECIAL = tuple(
    ipaddress.IPv6Network(text) for text in "2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20".split()
)


@dataclass(frozen=True, kw_only=True)
class Link:
    """A URL taken apart. host: lower case, no trailing dot, IPv6 without brackets. target: path and query, as given."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """What belongs into the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    def __str__(self) -> str:
        """For logs and messages: the query may hold a signature and stays out."""
        path = self.target.partition("?")[0]
        return f"{self.scheme}://{self.authority}{path if len(path) <= 200 else path[:200] + '…'}"

    def follow(self, location: str) -> Link:
        """The link a redirect leads to; from https never to http."""
        try:
            target = read_link(urljoin(self.url, location))
        except ValueError:
            raise EgressRefused(f"{self}: redirected to an address that cannot be read") from None
        if (self.scheme, target.scheme) == ("https", "http"):
            raise EgressRefused(f"{self}: redirected from https to http")
        return target


def read_link(url: str) -> Link:
    """Take a URL apart, or refuse what is malformed, ambiguous or not http(s)."""
    if len(url) > MAX_URL:
        raise EgressRefused(f"the address is longer than {MAX_URL} characters")
    if _UNSAFE.search(url):
        raise EgressRefused("the address has control characters, spaces or backslashes")
    match = _URL.fullmatch(url)
    if match is None or match[1].lower() not in DEFAULT_PORTS:
        raise EgressRefused("the address does not begin with http:// or https://")
    scheme, (host, port) = match[1].lower(), _authority(match[2])
    return Link(scheme=scheme, host=host, port=port or DEFAULT_PORTS[scheme], target=_target(match[3], match[4] or ""))


def redact_url(url: str) -> str:
    """scheme://host/path, without user, query and fragment; never raises."""
    try:
        return str(read_link(url))
    except EgressRefused:
        return "(an unreadable address)"


def _authority(text: str) -> tuple[str, int | None]:
    if "@" in text:
        raise EgressRefused("the address has a user name in it")
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise EgressRefused("the address has no plain host name (write names of other scripts in punycode)")
    port = int(match[2]) if match[2] else None
    if port is not None and not 0 < port < 65536:
        raise EgressRefused("the address has an impossible port")
    return _host(match[1].lower()), port


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise EgressRefused("the address has a malformed IPv6 host") from None
    host = text.removesuffix(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, host.split("."))):
        raise EgressRefused("the address has a malformed host name")
    # 127.1, 0x7f.1, 017700000001 and 2130706433 all mean 127.0.0.1 to some resolver.
    if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]) and _ip(host) is None:
        raise EgressRefused("the host is a number, but not a plain IPv4 address")
    return host


def _target(path: str, query: str) -> str:
    try:
        return quote((path or "/") + query, safe=_VISIBLE_ASCII)
    except UnicodeEncodeError:
        raise EgressRefused("the address is not valid Unicode") from None


def _ip(text: str) -> IP | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_ip(host: str) -> bool:
    return _ip(host) is not None


def is_loopback(host: str) -> bool:
    """Whether a host, as an address names it, is this very machine."""
    ip = _ip(host)
    return host == "localhost" or (ip is not None and ip.is_loopback)


def is_public(ip: IP) -> bool:
    """Whether this is an ordinary host on the internet: no special network, no tunnel into IPv4, no zone."""
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _V4_SPECIAL)
    if ip.scope_id:
        return False
    if ip.ipv4_mapped is not None:
        return is_public(ip.ipv4_mapped)
    isatap = _isatap(ip)
    if isatap is not None and not is_public(isatap):
        return False
    return ip in _V6_GLOBAL and not any(ip in network for network in _V6_SPECIAL)


def _isatap(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address in an interface id ::5efe:a.b.c.d or ::200:5efe:a.b.c.d (RFC 5214), if it is one."""
    interface = int(ip) & (2**64 - 1)
    if (interface >> 32) & 0xFDFFFFFF != 0x00005EFE:
        return None
    return ipaddress.IPv4Address(interface & 0xFFFFFFFF)


class Policy:
    """What may be dialled.

    allow: `host` (any port) or `host:port`, free of the rules on names, private addresses and ports – never of those
    on scheme and user names. deny: addresses or networks refused although they are public, such as our own.
    """

    def __init__(
        self, *, allow: Collection[str] = (), deny: Collection[str] = (), ports: Iterable[int] = (80, 443)
    ) -> None:
        self._allow = frozenset(map(_allowed, allow))
        self._deny: tuple[Network, ...] = tuple(ipaddress.ip_network(text, strict=False) for text in deny)
        self._ports = frozenset(ports)

    def check(self, link: Link) -> None:
        """All that can be said without asking a name server; raises `EgressRefused`."""
        if self.exempts(link.host, link.port):
            return
        if link.port not in self._ports:
            raise EgressRefused(f"{link}: port {link.port} is not one we fetch from")
        ip = _ip(link.host)
        if ip is not None:
            self._check_ip(ip, link.host)
        elif "." not in link.host or link.host.endswith(tuple("." + suffix for suffix in _LOCAL_SUFFIXES)):
            raise EgressRefused(f"{link}: the host is a name of a private network")

    def exempts(self, host: str, port: int) -> bool:
        return not self._allow.isdisjoint({(host, None), (host, port)})

    def admit(self, host: str, port: int, answers: Sequence[str]) -> list[str]:
        """The addresses that may be dialled for a host: all that the name server gave, or none if one is bad."""
        ips = [_ip(answer) for answer in answers]
        if not ips:
            raise EgressRefused(f"{host}: the name has no address")
        exempt = self.exempts(host, port)
        for ip in ips:
            if ip is None:
                raise EgressRefused(f"{host}: the name server's answer is no address")
            if not exempt:
                self._check_ip(ip, host)
        return [str(ip) for ip in ips]

    def _check_ip(self, ip: IP, host: str) -> None:
        # The address itself stays out of the message: a caller must not read our network's names from it.
        plain = (ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip
        if not is_public(ip) or any(plain in network for network in self._deny):
            raise EgressRefused(f"{host}: a private or special address (BROKER_DOWNLOAD_ALLOW can exempt it)")


def _allowed(entry: str) -> tuple[str, int | None]:
    """`minio:9000`, `cdn.example.com`, `[::1]:8080` or `::1` as (host, port or None for all); ValueError otherwise."""
    text = entry.strip()
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    try:
        return _authority(text)
    except EgressRefused:
        raise ValueError(f"{entry!r} is neither host nor host:port") from None


def check_url(url: str, allow: Collection[str] = ()) -> None:
    """Refuse what can be refused without a name server: for the moment somebody hands an address in.

    It is a courtesy to the caller, not the guard: the guard checks again, with the addresses it dials.
    """
    Policy(allow=allow).check(read_link(url))
