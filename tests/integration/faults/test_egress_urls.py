"""No spelling of a blocked address is ever dialed."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

import httpx
import pytest

from broker.errors import DownloadError, EgressBlocked
from broker.net.fetcher import Fetcher
from broker.net.hosts import is_public_ip
from tests.support.faulty_http import Names, Network, answers, serve

pytestmark = pytest.mark.anyio

FORBIDDEN = """127.0.0.1 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 192.0.0.192 198.18.0.1
168.63.129.16 224.0.0.1 255.255.255.255""".split()

SPECIAL_V6 = """:: ::1 fe80::1 fec0::1 fc00::1 fd00:ec2::254 ff02::1 100::1 64:ff9b:1::1 2001::1 2001:2::1 2001:20::1
2001:db8::1 2002:7f00:1:: 2620:4f:8000::1 3fff::1 5f00::1 4000::1 8000::1""".split()

ODD = [
    "",
    "http",
    "http:",
    "http:/",
    "http://",
    "http:///x",
    "https:///93.184.216.34/",
    "http:93.184.216.34",
    "//example.com/x",
    "example.com/x",
    "/etc/passwd",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "gopher://example.com/_x",
    "ftp://example.com/x",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "dict://example.com:80/x",
    "ws://example.com/",
    "unix:///run/docker.sock",
    "http+unix://%2frun%2fdocker.sock/x",
    "jar:http://example.com/x!/y",
    "http://user@example.com/",
    "http://user:secret@example.com/",
    "http://@example.com/",
    "http://example.com@127.0.0.1/",
    "http://example.com:80@127.0.0.1/",
    "http://example.com\\@127.0.0.1/",
    "http://127.0.0.1\\@example.com/",
    "http:\\\\example.com\\x",
    "http://example.com/a\\b",
    "http://example.com/a b",
    "http://example.com /",
    " http://example.com/",
    "http://example.com/ ",
    "http://example.com/\n",
    "http://example.com/\r\nHost: localhost",
    "http://exa\tmple.com/",
    "http://example.com\x00.evil.example/",
    "http://127.0.0.1\x00.example.com/",
    "http://example.com/\x7f",
    "http://example.com/\ud800",
    "http://example.com:/",
    "http://example.com:0/",
    "http://example.com:22/",
    "http://example.com:6379/",
    "http://example.com:8080/",
    "https://example.com:2375/",
    "http://example.com:65536/",
    "http://example.com:99999999999/",
    "http://example.com:-80/",
    "http://example.com:+80/",
    "http://example.com:8 0/",
    "http://example.com:80:80/",
    "http://example.com:８０/",
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://x.localhost/",
    "http://printer.local/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://router.home.arpa/",
    "http://metadata/",
    "http://postgres/",
    "http://.example.com/",
    "http://example..com/",
    "http://example.com../",
    "http://./",
    "http://-example.com/",
    "http://example-.com/",
    "http://exam ple.com/",
    "http://exam%70le.com/",
    "http://example.com%00/",
    "http://example.com%2f@127.0.0.1/",
    "http://ex*mple.com/",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 130 + "com/",
    "http://example.com/" + "a" * 9000,
    "http://例子.中国/",
    "http://ⓔⓧⓐⓜⓟⓛⓔ.com/",
    "http://example。com/",
    "http://ｅxample.com/",
    "http://[::1/",
    "http://::1/",
    "http://[]/",
    "http://[1.2.3.4]/",
    "http://[::1]x/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[2606:4700::1111%1]/",
    "http://[::ffff:127.0.0.1]:80:80/",
    "http://[v1.fe80::a]/",
    "http://1.2.3/",
    "http://1/",
    "http://1.1.1.1.1/",
    "http://256.1.1.1/",
    "http://1.1.1.0x/",
    "http://example.1/",
    "http://example.0x7f/",
]


def spellings(text: str) -> list[str]:
    """Return the spellings that some client accepts for this IPv4 address."""
    ip = IPv4Address(text)
    number, (a, b, c, d) = int(ip), ip.packed
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    v6 = [
        f"::ffff:{text}",
        f"::ffff:{high}:{low}",
        f"0:0:0:0:0:ffff:{text}",
        f"::FFFF:{high}:{low}",
        f"::{text}",
        f"64:ff9b::{text}",
        f"64:ff9b::{high}:{low}",
        f"2002:{high}:{low}::1",
        f"2001:0:4136:e378:8000:63bf:{(number >> 16) ^ 0xFFFF:x}:{(number & 0xFFFF) ^ 0xFFFF:x}",
        f"2606:4700::5efe:{text}",
        f"2606:4700::200:5efe:{text}",
        f"fe80::5efe:{text}",
    ]
    return [
        text,
        text + ".",
        str(number),
        hex(number),
        f"0X{number:X}",
        f"0{number:o}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a:03}.{b:03}.{c:03}.{d:03}",
        f"000{a:o}.{b}.{c}.{d}",
        f"{a:#x}.{b}.{c}.{d}",
        f"{a}.{b}.{c}.{d:#x}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"{a}.{number & 0xFFFFFF:#x}",
        f"{a + 256}.{b}.{c}.{d}",
        f"{number + 2**32}",
        f"{text}:80",
        f"{text}:443",
        f"{text}:22",
        f"example.com@{text}",
        f"example.com:80@{text}",
        f"{text}%00.example.com",
        f"{text}\x00.example.com",
        f"{text}\\.example.com",
        f"{text}\t",
        text.replace(".", "。"),
        text.replace(".", "%2e"),
        "".join(chr(ord(char) + 0xFEE0) for char in text),
        text.replace("1", "①"),
        "".join(f"%{ord(char):x}" for char in text),
        *(f"[{host}]" for host in v6),
    ]


PAYLOADS = [f"{scheme}://{host}/x" for scheme in ("http", "https") for ip in FORBIDDEN for host in spellings(ip)]
PAYLOADS += [f"http://[{ip}]/" for ip in SPECIAL_V6] + [f"https://[{ip}]:443/" for ip in SPECIAL_V6] + ODD


async def outcome(fetcher: Fetcher, url: str) -> type[Exception] | None:
    try:
        async with fetcher.open(url, max_bytes=100):
            return None
    except DownloadError as exc:
        return type(exc)


async def test_payload_reaches_neither_name_server_nor_socket() -> None:
    """All are blocked by their spelling. Names would resolve and connections be counted: both stay unused."""
    network, names = Network(), Names()
    fetcher = Fetcher(resolve=names, dial=network, tls=network.tls)
    outcomes = {url: await outcome(fetcher, url) for url in PAYLOADS}
    assert len(outcomes) >= 600
    assert [url for url, what in outcomes.items() if what is not EgressBlocked] == []
    assert (network.dialled, names.resolved) == ([], [])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/" + "a" * 9000, "longer than 8192 characters"),
        ("http://example.com/a b", "control characters, spaces or backslashes"),
        ("http://example.com\\x/", "control characters, spaces or backslashes"),
        ("ftp://example.com:80/x", "does not begin with http"),
        ("http://example.com/\ud800", "not valid Unicode"),
        ("http://user@example.com/", "user name"),
        ("http://exam%70le.com/", "no plain host name"),
        ("http://example.com:65536/", "impossible port"),
        ("http://[1.2.3.4]/", "malformed IPv6 host"),
        ("http://-example.com/", "malformed host name"),
        ("http://" + "a." * 130 + "com/", "malformed host name"),
        ("http://example.0x7f/", "is a number"),
        ("http://example.com:22/", "port 22 is not allowed"),
        ("http://metadata/", "name of a private network"),
        ("http://x.localhost/", "name of a private network"),
        ("http://10.0.0.1/", "private or special address"),
        ("http://[fc00::1]/", "private or special address"),
        ("http://[2002:808:808::1]/", "private or special address"),
        ("http://[2606:4700::5efe:10.0.0.1]/", "private or special address"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_each_rule_blocks_a_url_that_breaks_no_other(url: str, reason: str) -> None:
    """Otherwise a rule could be lost while the table above still passes."""
    with pytest.raises(EgressBlocked, match=re.escape(reason)):
        Fetcher().check_url(url)


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "https://EXAMPLE.com./x", "https://8.8.8.8/", "http://[2606:4700::1]"]
)
async def test_ordinary_urls_are_dialed(url: str) -> None:
    """The counter-check: a policy that blocks everything would pass the table above."""
    network = Network()
    assert await outcome(Fetcher(resolve=Names(), dial=network, tls=network.tls), url) is DownloadError
    assert len(network.dialled) == 1


def test_a_blocked_url_is_rejected_before_any_connection() -> None:
    """`check_url` applies the same rules without a name server, so that a caller gets the error with the order."""
    fetcher = Fetcher()
    for url in PAYLOADS:
        with pytest.raises(EgressBlocked):
            fetcher.check_url(url)
    fetcher.check_url("https://example.com/x?y#z")


@pytest.mark.parametrize("text", [*FORBIDDEN, *SPECIAL_V6, "::ffff:100.64.0.1", "2606:4700::5efe:10.0.0.1"])
def test_special_addresses_are_not_public(text: str) -> None:
    assert not is_public_ip(ip_address(text))


@pytest.mark.parametrize(
    "text",
    """8.8.8.8 1.1.1.1 93.184.216.34 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 169.253.0.1 198.20.0.1
    223.255.255.255 168.63.129.17 2606:4700::1111 2a00:1450:4001::200e 2400:cb00::1 2001:200::1 2001:4860:4860::8888
    ::ffff:8.8.8.8 2606:4700::5efe:8.8.8.8""".split(),
)
def test_ordinary_addresses_are_public(text: str) -> None:
    assert is_public_ip(ip_address(text))


def test_address_with_a_zone_is_not_public() -> None:
    assert not is_public_ip(IPv6Address("2606:4700::1111%eth0"))


async def test_allowlisted_hosts_are_exempt_from_names_addresses_and_ports_only() -> None:
    """An object store in another container is allowed; user names, schemes and other ports stay blocked."""
    allow = ["MinIO.:9000", "127.0.0.1:8080", "[::1]:8080", "::2", "cdn.internal"]
    good = """http://minio:9000/x http://127.0.0.1:8080/x http://[::1]:8080/x http://[0::2]:7/x http://[::2]/
    https://cdn.internal:8443/x http://CDN.internal/""".split()
    bad = """http://minio/x http://minio:9001/x http://127.0.0.1/x http://127.1:8080/ http://[::1]/ http://[::3]/
    http://u@minio:9000/x ftp://minio:9000/x http://x.cdn.internal/""".split()
    for url in good:
        network = Network()
        assert (
            await outcome(Fetcher(allow=allow, resolve=Names([["10.0.0.7"]]), dial=network, tls=network.tls), url)
            is DownloadError
        )
        assert len(network.dialled) == 1, url
        Fetcher(allow=allow).check_url(url)
    for url in bad:
        assert await outcome(Fetcher(allow=allow, dial=Network()), url) is EgressBlocked, url


@pytest.mark.parametrize("entry", ["", "http://minio", "minio:x", "a@b", "minio:9000/x", "[::1", "*"])
def test_malformed_allowlist_entry_stops_the_start(entry: str) -> None:
    with pytest.raises(ValueError, match="neither host nor host:port"):
        Fetcher(allow=[entry])


async def test_error_messages_hold_no_secret() -> None:
    """Neither the query of the URL nor the address of a name of our network."""
    fetcher = Fetcher(resolve=Names([["10.11.12.13"]]), dial=Network())
    for url in ["http://example.com/?sig=s3cret", "http://example.com:81/?sig=s3cret", "http://u:s3cret@example.com/"]:
        with pytest.raises(EgressBlocked) as caught:
            async with fetcher.open(url, max_bytes=1):
                pass
        assert "s3cret" not in str(caught.value)
        assert ("user name" in str(caught.value)) is ("u:s3cret" in url)
        assert "10.11.12.13" not in str(caught.value)


async def test_plain_client_reaches_the_canary() -> None:
    """The negative control: without the policy these spellings do lead to loopback."""
    hosts = """127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 017700000001 0x7f.0.0.1 0177.0.0.1 127.0.0.2 0.0.0.0 0
    localhost LOCALHOST 127.0.0.1. [::ffff:127.0.0.1]""".split()
    async with serve(answers()) as canary:
        async with httpx.AsyncClient(trust_env=False) as stock:
            for host in hosts:
                try:
                    await stock.get(f"http://{host}:{canary.port}/")
                except (httpx.TransportError, httpx.InvalidURL):
                    continue
        assert canary.connections >= 0.8 * len(hosts)
        canary.connections = 0
        fetcher = Fetcher(ports=[canary.port])
        assert {await outcome(fetcher, f"http://{host}:{canary.port}/") for host in hosts} == {EgressBlocked}
        assert canary.connections == 0


async def test_port_rule_blocks_other_ports() -> None:
    network = Network()
    assert await outcome(
        Fetcher(resolve=Names(), dial=network, tls=network.tls, ports=range(65536)), "http://example.com:22/"
    )
    assert network.dialled == [("93.184.216.34", 22)]
