"""A name is resolved once, all its addresses must be good, and the checked address is the one dialed."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import threading
from collections.abc import Sequence

import pytest

from broker.errors import DownloadError, EgressBlocked
from broker.net.fetcher import Fetcher
from broker.net.resolver import SystemResolver
from tests.integration.faults.test_egress_urls import FORBIDDEN, SPECIAL_V6
from tests.support.faulty_http import PUBLIC, Names, Network, head

pytestmark = pytest.mark.anyio

GOOD = ["93.184.216.34", "2606:4700::1111"]
OK = head("200 OK", "Content-Length: 2") + b"ok"


async def fetch(fetcher: Fetcher, url: str = "https://cdn.example.com/x?sig=1") -> bytes:
    async with fetcher.open(url, max_bytes=1000) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("bad", [*FORBIDDEN, *SPECIAL_V6, "::ffff:10.0.0.1", "fe80::1%eth0", "64:ff9b::a00:1", "junk"])
async def test_name_with_one_bad_address_is_blocked(bad: str) -> None:
    """Alone, first, last or between good ones: a client that tries them in turn would reach the bad one."""
    mixed = [[bad], *([*GOOD[:place], bad, *GOOD[place:]] for place in range(len(GOOD) + 1))]
    network, names = Network([OK]), Names(list(mixed))
    fetcher = Fetcher(resolve=names, dial=network, tls=network.tls)
    for _ in mixed:
        with pytest.raises(EgressBlocked):
            await fetch(fetcher)
    assert (network.dialled, len(names.resolved)) == ([], len(mixed))


async def test_dns_rebinding_is_blocked() -> None:
    """Answers alternate between good and bad; the checked address is dialed, and the name resolved once per request."""
    flips = [[PUBLIC], ["127.0.0.1"], [PUBLIC, "10.0.0.1"]]
    rounds = 300
    names = Names([answer for _, answer in zip(range(rounds), itertools.cycle(flips), strict=False)])
    network = Network([OK] * rounds)
    fetcher = Fetcher(resolve=names, dial=network, tls=network.tls)
    outcomes = []
    for _ in range(rounds):
        try:
            outcomes.append(await fetch(fetcher))
        except EgressBlocked:
            outcomes.append(b"blocked")
    assert (outcomes.count(b"ok"), outcomes.count(b"blocked")) == (100, 200)
    assert set(network.dialled) == {(PUBLIC, 443)}
    assert len(names.resolved) == rounds


async def test_tls_verifies_the_name_although_the_address_is_dialed() -> None:
    """Only the destination of the TCP connection changes: SNI, certificate and Host are the name's."""
    network = Network([OK])
    assert (
        await fetch(
            Fetcher(resolve=Names(), dial=network, tls=network.tls), "https://CDN.example.com.:443/a%20b?sig=%2F+1#f"
        )
        == b"ok"
    )
    assert network.dialled == [(PUBLIC, 443)]
    assert network.tls_names == ["cdn.example.com"]
    assert network.sent[0].startswith(b"GET /a%20b?sig=%2F+1 HTTP/1.1\r\n")
    assert b"\r\nhost: cdn.example.com\r\n" in network.sent[0].lower()
    await network.all_closed()


async def test_request_has_no_cookies_or_credentials() -> None:
    """A plain request: no cookie, no credentials, no compression."""
    network = Network([head("200 OK", "Content-Length: 2", "Set-Cookie: a=b") + b"ok", OK])
    fetcher = Fetcher(resolve=Names(), dial=network, tls=network.tls)
    assert [await fetch(fetcher), await fetch(fetcher)] == [b"ok", b"ok"]
    for sent in network.sent:
        names = {line.partition(b":")[0].lower() for line in sent.strip().split(b"\r\n")[1:]}
        assert names == {b"host", b"user-agent", b"accept", b"accept-encoding"}
        assert b"accept-encoding: identity\r\n" in sent.lower()
    assert len(network.dialled) == 2


async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve every name itself, checked or not."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    network = Network([OK])
    assert await fetch(Fetcher(resolve=Names(), dial=network, tls=network.tls)) == b"ok"
    assert network.dialled == [(PUBLIC, 443)]


async def test_next_address_is_tried_when_one_is_dead() -> None:
    """Many hosts announce IPv6 that does not work; at most four are tried."""

    class HalfDead(Network):
        async def __call__(self, address: str, port: int) -> socket.socket:
            if ":" in address:
                self.dialled.append((address, 0))
                raise OSError(errno.ENETUNREACH, "no route")
            return await super().__call__(address, port)

    network = HalfDead([OK])
    assert (
        await fetch(Fetcher(resolve=Names([["2606:4700::1", "2606:4700::2", PUBLIC]]), dial=network, tls=network.tls))
        == b"ok"
    )
    assert [host for host, _ in network.dialled] == ["2606:4700::1", "2606:4700::2", PUBLIC]
    dead = HalfDead()
    with pytest.raises(DownloadError, match="no connection"):
        await fetch(Fetcher(resolve=Names([[f"2606:4700::{n}" for n in range(1, 9)]]), dial=dead, tls=dead.tls))
    assert len(dead.dialled) == 4


@pytest.mark.parametrize("failure", [OSError("no such name"), UnicodeError("label too long"), None])
async def test_unresolvable_name_is_a_failed_download(failure: Exception | None) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        if failure is not None:
            raise failure
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(DownloadError) as caught:
        await fetch(Fetcher(resolve=resolve, dial=Network(), total_seconds=0.05))
    assert (caught.value.code, type(caught.value)) == ("download_failed", DownloadError)


async def test_name_without_addresses_is_blocked() -> None:
    with pytest.raises(EgressBlocked):
        await fetch(Fetcher(resolve=Names([[]]), dial=Network()))


async def test_system_resolver_uses_its_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow name server must not take the threads that file writes need, nor more than a few of its own."""
    lock, gate, full = threading.Lock(), threading.Event(), threading.Event()
    here = most = 0

    def slow(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        nonlocal here, most
        with lock:
            here += 1
            most = max(most, here)
            if here == 2:
                full.set()
        assert gate.wait(10)
        with lock:
            here -= 1
        return [(0, 0, 0, "", (PUBLIC, port))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    resolve = SystemResolver(threads=2)
    lookups = [asyncio.create_task(resolve(f"{n}.example.com", 80)) for n in range(5)]
    assert await asyncio.to_thread(full.wait, 10)
    lookups[0].cancel()
    gate.set()
    outcomes = await asyncio.wait_for(asyncio.gather(*lookups, return_exceptions=True), 10)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1:] == [[PUBLIC]] * 4
    assert most == 2


async def test_system_resolver_resolves_numbers_and_raises_for_unknown_names() -> None:
    resolve = SystemResolver()
    assert set(await resolve("127.0.0.1", 80)) == {"127.0.0.1"}
    with pytest.raises(UnicodeError):
        await resolve("a" * 64 + ".example", 80)
