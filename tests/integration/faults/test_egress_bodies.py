"""Faulty response bodies: every download ends in time, within its limits, and with a cause."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc

import pytest

from broker.errors import DownloadError, EgressBlocked
from broker.net.fetcher import Fetcher
from tests.support.faulty_http import Script, Visit, answers, head, rst, sends, serve, silence

pytestmark = pytest.mark.anyio

MB = 2**20


async def endless(visit: Visit) -> None:
    await visit.send(head())
    while True:
        await visit.send(b"x" * 65536)


async def drip(visit: Visit) -> None:
    await visit.send(head("200 OK", "Content-Length: 1000"))
    for _ in range(1000):
        await visit.send(b"x")
        await asyncio.sleep(0.01)


async def dripping_head(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await visit.send(b"X-Slow: y\r\n")
        await asyncio.sleep(0.01)


async def stall(visit: Visit) -> None:
    await visit.send(head("200 OK", "Content-Length: 1000"), b"x" * 500)
    await silence(visit)


async def half_and_reset(visit: Visit) -> None:
    await visit.send(head("200 OK", "Content-Length: 1000"), b"x" * 500)
    visit.reset()


FAULTS: dict[str, tuple[Script, str]] = {
    "short body": (sends(head("200 OK", "Content-Length: 1000"), b"x" * 999), "download_failed"),
    "half and reset": (half_and_reset, "download_failed"),
    "short chunked body": (sends(head("200 OK", "Transfer-Encoding: chunked"), b"5\r\nxxxxx\r\n"), "download_failed"),
    "bad chunk": (sends(head("200 OK", "Transfer-Encoding: chunked"), b"zz\r\nxxxxx\r\n"), "download_failed"),
    "endless": (endless, "invalid_result"),
    "too large, announced": (sends(head("200 OK", f"Content-Length: {MB + 1}")), "invalid_result"),
    "too large, chunked": (
        sends(
            head("200 OK", "Transfer-Encoding: chunked"), *[b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 17, b"0\r\n\r\n"
        ),
        "invalid_result",
    ),
    "absurd length": (sends(head("200 OK", f"Content-Length: {'9' * 30}")), "download_failed"),
    "two lengths": (sends(head("200 OK", "Content-Length: 1", "Content-Length: 2"), b"xx"), "download_failed"),
    "negative length": (sends(head("200 OK", "Content-Length: -1"), b"x"), "download_failed"),
    "gzip": (answers("200 OK", gzip.compress(bytes(MB)), "Content-Encoding: gzip"), "invalid_result"),
    "unknown encoding": (answers("200 OK", b"x", "Content-Encoding: identity, br"), "invalid_result"),
    "drip": (drip, "download_failed"),
    "dripping head": (dripping_head, "download_failed"),
    "stall": (stall, "download_failed"),
    "silence": (silence, "download_failed"),
    "reset": (rst, "download_failed"),
    "close": (sends(), "download_failed"),
    "not http": (sends(b"SSH-2.0-OpenSSH_9.2\r\n"), "download_failed"),
    "huge head": (sends(b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"y" * 60000 + b"\r\n"] * 4), "download_failed"),
    "hundred continues": (sends(*[head("100 Continue")] * 100), "download_failed"),
    "switching protocols": (sends(head("101 Switching Protocols", "Upgrade: x")), "download_failed"),
    **{
        status: (answers(status, b"<html>"), "result_gone")
        for status in ["401 Unauthorized", "403 Forbidden", "404 Not Found", "410 Gone", "451 Unavailable"]
    },
    **{
        status: (answers(status, b"<html>"), "download_failed")
        for status in ["400 Bad", "408 Timeout", "429 Slow", "500 Error", "502 Bad", "503 Busy", "504 Late"]
    },
}


def fetcher_for(host: str, **settings: float) -> Fetcher:
    return Fetcher(allow=[host], total_seconds=10, **settings)  # type: ignore[arg-type]


async def fetch(fetcher: Fetcher, url: str, max_bytes: int = MB) -> bytes:
    async with fetcher.open(url, max_bytes=max_bytes) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("name", FAULTS)
async def test_body_fault_ends_with_its_code(name: str) -> None:
    script, code = FAULTS[name]
    async with serve(script) as server, asyncio.timeout(5):
        fetcher = Fetcher(allow=[server.host], total_seconds=0.3, grace_seconds=0.1)
        with pytest.raises(DownloadError) as caught:
            await fetch(fetcher, server.url("/x?sig=s3cret"))
        assert (caught.value.code, type(caught.value)) == (code, DownloadError)
        assert server.host in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert server.connections == 1


async def test_sound_body_arrives_unchanged() -> None:
    """With a length, in chunks, or up to the end of the connection; never decoded, whatever it looks like."""
    body = gzip.compress(bytes(100_000))
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
    scripts = {
        "/length": answers("200 OK", body, "Content-Type: image/png"),
        "/chunked": sends(head("200 OK", "Transfer-Encoding: chunked", "Content-Type: Image/WebP; q=1"), chunked),
        "/both": sends(head("200 OK", "Transfer-Encoding: chunked", "Content-Length: 3"), chunked),
        "/until-the-end": sends(head("200 OK", "Content-Encoding: identity"), body),
        "/empty": answers(),
        "/html": answers("200 OK", b"<html>sorry</html>", "Content-Type: text/html; charset=utf-8"),
    }
    async with serve(scripts) as server:
        fetcher = fetcher_for(server.host)
        got = {path: await fetch(fetcher, server.url(path)) for path in scripts}
    assert got == {**dict.fromkeys(scripts, body), "/empty": b"", "/html": b"<html>sorry</html>"}


async def test_download_is_repeated_when_a_kept_connection_had_ended() -> None:
    """Once, and only before the first byte of the response."""
    wanted = [b"one", b"two", b"three"]

    async def answer_once(visit: Visit) -> None:
        await visit.send(head("200 OK", f"Content-Length: {len(wanted[0])}"), wanted[0])
        await visit.reader.readuntil(b"\r\n\r\n")  # reads the next request, and closes
        del wanted[0]

    async with serve(answer_once) as server:
        fetcher = fetcher_for(server.host)
        assert [await fetch(fetcher, server.url()) for _ in range(3)] == [b"one", b"two", b"three"]
        assert server.connections == 3
        await fetcher.aclose()


async def test_webhook_never_travels_on_a_kept_connection() -> None:
    async def answer(visit: Visit) -> None:
        while True:
            await visit.send(head("200 OK", "Content-Length: 2"), b"{}")
            visit.head = await visit.reader.readuntil(b"\r\n\r\n")

    async with serve(answer) as server:
        fetcher = fetcher_for(server.host)
        await fetch(fetcher, server.url())
        await fetch(fetcher, server.url())
        assert server.connections == 1
        await fetcher.post(server.url(), content=b"{}", headers={})
        await fetcher.post(server.url(), content=b"{}", headers={})
        assert server.connections == 3
        await fetcher.aclose()


async def test_bytes_beyond_the_announced_length_are_dropped() -> None:
    """A second response appended to the first is neither part of it nor the answer to the next request."""
    smuggled = head("200 OK", "Content-Length: 4") + b"evil"
    async with serve(sends(head("200 OK", "Content-Length: 4") + b"good" + smuggled)) as server:
        fetcher = fetcher_for(server.host)
        for _ in range(3):
            assert await fetch(fetcher, server.url()) == b"good"
        assert server.connections == 3


async def test_slow_steady_body_is_an_error() -> None:
    """The rate counts: with a lower minimum the same body passes."""

    async def brisk_drip(visit: Visit) -> None:
        await visit.send(head("200 OK", "Content-Length: 30"))
        for _ in range(30):
            await visit.send(b"x")
            await asyncio.sleep(0.01)

    async with serve(brisk_drip) as server:
        with pytest.raises(DownloadError, match="too slow"):
            await fetch(fetcher_for(server.host, grace_seconds=0.05, min_bytes_per_second=1000), server.url())
        assert (
            len(await fetch(fetcher_for(server.host, grace_seconds=0.05, min_bytes_per_second=1), server.url())) == 30
        )


async def test_total_time_is_limited_at_any_rate() -> None:
    """A body that is fast enough may not last longer than a download may take."""
    async with serve(drip) as server, asyncio.timeout(5):
        fetcher = Fetcher(allow=[server.host], total_seconds=0.2, min_bytes_per_second=1)
        with pytest.raises(DownloadError, match="too slow"):
            await fetch(fetcher, server.url())


async def test_bursts_with_long_pauses_are_an_error() -> None:
    """The grace is given once, not for every chunk."""

    async def bursts(visit: Visit) -> None:
        await visit.send(head("200 OK", f"Content-Length: {6 * MB // 4}"))
        for _ in range(6):
            await visit.send(bytes(MB // 4))
            await asyncio.sleep(0.15)

    async with serve(bursts) as server:
        with pytest.raises(DownloadError, match="too slow"):
            await fetch(fetcher_for(server.host, grace_seconds=0.2, min_bytes_per_second=10 * MB), server.url(), 2 * MB)


async def test_slow_reader_does_not_count_against_the_server() -> None:
    """Time spent between chunks does not count against the rate."""
    body = bytes(2 * MB)
    async with serve(answers("200 OK", body)) as server:
        fetcher = fetcher_for(server.host, grace_seconds=0.3, min_bytes_per_second=5 * MB)
        async with fetcher.open(server.url(), max_bytes=2 * MB) as chunks:
            length = 0
            async for chunk in chunks:
                length += len(chunk)
                await asyncio.sleep(0.1)
    assert length == len(body)


async def test_abandoned_download_leaves_no_connection_open() -> None:
    """The server sees the connection close, and the slot is free again."""
    async with serve(stall) as server, asyncio.timeout(5):
        fetcher = Fetcher(allow=[server.host], max_connections=1)
        async with fetcher.open(server.url(), max_bytes=MB):
            pass
        with pytest.raises(ValueError, match="disk full"):
            async with fetcher.open(server.url(), max_bytes=MB):
                raise ValueError("disk full")
        server.called.clear()
        task = asyncio.create_task(fetch(fetcher, server.url()))
        await server.called.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await server.left.wait()
        async with fetcher.open(server.url(), max_bytes=MB):
            assert server.connections == 4


async def test_hanging_handshake_leaves_no_connection_open() -> None:
    async with serve(silence) as server, asyncio.timeout(5):
        with pytest.raises(DownloadError, match="no connection in time"):
            await fetch(Fetcher(allow=[server.host], total_seconds=0.1), f"https://{server.host}/")
        await server.left.wait()
        assert server.heads == []


async def test_memory_is_independent_of_the_body_size() -> None:
    """Twenty bodies of 20 MB at once: chunks of at most 1 MiB, and no more than a few of them alive."""
    size, block = 20 * MB, bytes(MB // 4)

    async def large(visit: Visit) -> None:
        await visit.send(head("200 OK", f"Content-Length: {size}"))
        for _ in range(size // len(block)):
            await visit.send(block)

    async def sizes(fetcher: Fetcher, url: str) -> list[int]:
        async with fetcher.open(url, max_bytes=size) as chunks:
            return [len(chunk) async for chunk in chunks]

    async with serve(large) as server:
        fetcher = Fetcher(allow=[server.host])
        tracemalloc.start()
        try:
            got = await asyncio.gather(*(sizes(fetcher, server.url()) for _ in range(20)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert [sum(lengths) for lengths in got] == [size] * 20
    assert max(max(lengths) for lengths in got) <= MB
    assert min(min(lengths[:-1]) for lengths in got) >= MB // 4
    assert peak < 48 * MB


async def test_concurrent_downloads_are_limited() -> None:
    """The others wait, and waiting does not count against the time of a download."""
    here = most = 0

    async def counting(visit: Visit) -> None:
        nonlocal here, most
        here += 1
        most = max(most, here)
        await asyncio.sleep(0.05)
        here -= 1
        await answers("200 OK", b"x")(visit)

    async with serve(counting) as server:
        fetcher = Fetcher(allow=[server.host], max_connections=3, total_seconds=0.25)
        await asyncio.gather(*(fetch(fetcher, server.url()) for _ in range(30)))
    assert most == 3


async def test_blocked_url_is_rejected_while_all_slots_are_in_use() -> None:
    arrived = asyncio.Event()

    async def held(visit: Visit) -> None:
        arrived.set()
        await silence(visit)

    async with serve(held) as server:
        fetcher = Fetcher(allow=[server.host], max_connections=1)
        slow = asyncio.create_task(fetch(fetcher, server.url()))
        await arrived.wait()
        for call in (fetch(fetcher, "http://10.0.0.1/"), fetcher.post("http://10.0.0.1/", content=b"", headers={})):
            with pytest.raises(EgressBlocked):
                async with asyncio.timeout(5):
                    await call
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


async def test_post_is_checked_and_never_redirected() -> None:
    """Webhooks to callers: one request, any status is an answer, a redirect is not followed.

    Only the status of the response counts: an endless page does not fail a delivery.
    """
    scripts = {
        "/hook?a=b": answers("202 Accepted", b"thanks", "Retry-After: 7"),
        "/moved": answers("307 Moved", b"", "Location: /hook"),
        "/endless": endless,
    }
    async with serve(scripts) as server:
        fetcher = fetcher_for(server.host)
        answer = await fetcher.post(server.url("/hook?a=b"), content=b"{}", headers={"webhook-id": "1"})
        assert (answer.status, answer.headers["retry-after"], answer.body) == (202, "7", b"thanks")
        assert (await fetcher.post(server.url("/moved"), content=b"{}", headers={})).status == 307
        endless_page = await fetcher.post(server.url("/endless"), content=b"{}", headers={})
        assert (endless_page.status, endless_page.body) == (200, b"")
        assert server.heads[0].startswith(b"POST /hook?a=b HTTP/1.1\r\n")
        assert b"webhook-id: 1\r\n" in server.heads[0]
        assert server.connections == 3
