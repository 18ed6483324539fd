"""Host names and IP addresses: classification and formatting, without I/O.

`ipaddress.is_global` calls many special networks public (NAT64, 6to4, site-local, multicast, a metadata address), so
the tables below are our own. Reconsider when the standard library's tables are current in every supported Python.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final, TypeAlias

IP: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

EVERY_INTERFACE: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104
"""Hosts that mean all interfaces to a listening socket."""

LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".intranet")

# IANA special-purpose registries, multicast, and Azure's wire server, which has a public-looking address.
_V4_SPECIAL: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12
    192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24
    198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4""".split()
)
# Only 2000::/3 is assigned; inside it Teredo and ORCHID (2001::/23), documentation, 6to4 and AS112 are not hosts.
_V6_GLOBAL: Final = ipaddress.IPv6Network("2000::/3")
_V6_SPECIAL: Final = tuple(
    ipaddress.IPv6Network(text) for text in "2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20".split()
)


@lru_cache(maxsize=1024)  # of peers above all, by every request
def parse_ip(text: str) -> IP | None:
    """Return the IP address, or None for a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


@lru_cache(maxsize=1024)  # the same
def is_loopback_host(host: str) -> bool:
    """Return True for `localhost` and for loopback addresses, IPv4-mapped ones included."""
    ip = parse_ip(host)
    return host == "localhost" or (ip is not None and unmap_ip(ip).is_loopback)


@lru_cache(maxsize=1024)  # of the proxies above all
def is_private_host(host: str) -> bool:
    """Return True where the host's spelling shows that it cannot be reached from the internet, without a DNS lookup."""
    ip = parse_ip(host)
    return not is_public_ip(ip) if ip is not None else is_local_name(host)


def is_local_name(name: str) -> bool:
    """Return True for single-label names and the suffixes that are reserved for private networks."""
    return "." not in name or name.endswith(LOCAL_SUFFIXES)


def is_public_ip(ip: IP) -> bool:
    """Return True for an ordinary internet host: outside special networks, not an IPv4 tunnel, without a zone."""
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _V4_SPECIAL)
    if ip.scope_id:
        return False
    if ip.ipv4_mapped is not None:
        return is_public_ip(ip.ipv4_mapped)
    isatap = _isatap_ipv4(ip)
    if isatap is not None and not is_public_ip(isatap):
        return False
    return ip in _V6_GLOBAL and not any(ip in network for network in _V6_SPECIAL)


def unmap_ip(ip: IP) -> IP:
    """Return the IPv4 address inside an IPv4-mapped IPv6 address, or the address itself."""
    return (ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip


def bracket_host(host: str) -> str:
    """Return the host as it is written in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def local_base_url(host: str, port: int) -> str:
    """Return the URL under which this machine reaches a server that listens on the host and port."""
    if host == "::":
        host = "::1"
    elif host in EVERY_INTERFACE or host == "localhost":
        host = "127.0.0.1"
    return f"http://{bracket_host(host)}:{port}"


def _isatap_ipv4(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address of an interface id ::5efe:a.b.c.d or ::200:5efe:a.b.c.d (RFC 5214), or None."""
    interface = int(ip) & (2**64 - 1)
    if (interface >> 32) & 0xFDFFFFFF != 0x00005EFE:
        return None
    return ipaddress.IPv4Address(interface & 0xFFFFFFFF)
