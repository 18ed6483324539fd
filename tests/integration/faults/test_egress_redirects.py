"""Redirects are checked like the first URL."""

from __future__ import annotations

import pytest

from broker.errors import DownloadError, EgressBlocked
from broker.net.fetcher import Fetcher
from tests.integration.faults.test_egress_urls import FORBIDDEN, ODD, SPECIAL_V6, spellings
from tests.support.faulty_http import PUBLIC, Names, Network, head

pytestmark = pytest.mark.anyio

OK = head("200 OK", "Content-Length: 2", "Content-Type: image/PNG; x=y") + b"ok"
FIRST = "https://cdn.example.com/a/b?sig=1"


def to(location: str, status: str = "302 Found") -> bytes:
    return head(status, f"Location: {location}", "Content-Length: 4", "Set-Cookie: who=me") + b"body"


async def fetch(network: Network, url: str = FIRST) -> bytes:
    async with Fetcher(resolve=Names(), dial=network, tls=network.tls).open(url, max_bytes=1000) as chunks:
        return b"".join([chunk async for chunk in chunks])


def targets() -> list[str]:
    """Return every payload that can be written into a header, as a location."""
    hosts = [f"{scheme}://{host}/x" for scheme in ("http", "https") for ip in FORBIDDEN for host in spellings(ip)]
    scheme_relative = [f"//{host}/x" for host in FORBIDDEN] + [f"//[{ip}]/x" for ip in SPECIAL_V6]
    # ODD has relative references too; what they mean below our first address is harmless.
    odd = [url for url in ODD if "://" in url and not url.startswith("https:///")]
    every = [*hosts, *scheme_relative, *odd]
    return [url for url in every if not set(url) & set("\x00\r\n\x7f") and url.strip() == url and url.isascii()]


async def test_redirect_to_a_private_address_is_blocked() -> None:
    """The first hop is dialed, the second never."""
    locations, network = targets(), Network()
    fetcher = Fetcher(resolve=Names(), dial=network, tls=network.tls)
    assert len(locations) >= 500
    for location in locations:
        network.replies = [to(location), OK]
        with pytest.raises(EgressBlocked):
            async with fetcher.open(FIRST, max_bytes=10):
                pytest.fail(location)
    assert network.dialled == [(PUBLIC, 443)] * len(locations)
    await network.all_closed()


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("c?d=1", "/a/c?d=1"),
        ("/c%20d", "/c%20d"),
        ("../c", "/c"),
        ("?d", "/a/b?d"),
        ("//cdn.example.com/c", "/c"),
        ("https://cdn.example.com:443/c#f", "/c"),
        ("/图", "/%E5%9B%BE"),
    ],
)
async def test_relative_and_absolute_redirects_are_followed(status: str, location: str, path: str) -> None:
    network = Network([head(status, f"Location: {location}".encode().decode("latin-1")), OK])
    assert await fetch(network) == b"ok"
    assert network.sent[1].startswith(f"GET {path} HTTP/1.1\r\n".encode())
    assert b"cookie" not in network.sent[1].lower()
    assert b"referer" not in network.sent[1].lower()


async def test_every_hop_is_resolved_and_checked() -> None:
    """The second host's own addresses count, not the first one's."""
    network, names = Network([to("https://other.example.org/"), OK]), Names([[PUBLIC], ["10.0.0.1"]])
    with pytest.raises(EgressBlocked):
        async with Fetcher(resolve=names, dial=network, tls=network.tls).open(FIRST, max_bytes=10):
            pass
    assert names.resolved == ["cdn.example.com", "other.example.org"]
    assert len(network.dialled) == 1


async def test_redirect_from_https_to_http_is_blocked() -> None:
    network = Network([to("http://cdn.example.com/x"), OK])
    with pytest.raises(EgressBlocked, match="from https to http"):
        await fetch(network)
    assert len(network.dialled) == 1
    up = Network([to("https://cdn.example.com/x"), OK])
    assert await fetch(up, "http://cdn.example.com/") == b"ok"
    assert [port for _, port in up.dialled] == [80, 443]


async def test_fourth_redirect_is_an_error() -> None:
    """This also ends loops."""
    enough = Network([to("/1"), to("/2"), to("/3"), OK])
    assert await fetch(enough) == b"ok"
    for loop in (["/1", "/2", "/3", "/4"], ["/x"] * 4, ["/a/b?sig=1"] * 4):
        network = Network([*map(to, loop), OK])
        with pytest.raises(DownloadError, match="more than 3 redirects") as caught:
            await fetch(network)
        assert (caught.value.code, type(caught.value)) == ("invalid_result", DownloadError)
        assert len(network.dialled) == 4
        await network.all_closed()


async def test_redirect_without_location_ends_at_the_hop_limit() -> None:
    """No Location means the same URL again."""
    with pytest.raises(DownloadError, match="more than 3 redirects"):
        await fetch(Network([head("302 Found", "Content-Length: 0")] * 5))


@pytest.mark.parametrize(
    "status", ["300 Multiple Choices", "304 Not Modified", "206 Partial", "204 No Content", "201 C"]
)
async def test_other_statuses_are_errors(status: str) -> None:
    with pytest.raises(DownloadError) as caught:
        await fetch(Network([to("/elsewhere", status), OK]))
    assert caught.value.code == "download_failed"
