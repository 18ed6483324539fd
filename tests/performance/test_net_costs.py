"""Costs of outgoing requests and downloads: connections, thread hops, writes, syncs and memory."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
import weakref
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from broker.net.api_client import ApiClient
from broker.net.connection_pool import MAX_IDLE
from broker.net.fetcher import Fetcher
from broker.net.response_parser import ResponseParser
from storage.blobs.local import LocalBlobs
from tests.support.faulty_http import Visit, head, serve
from tests.support.samples import PNG
from uploads.intake import Intake

REQUESTS = 100
AT_ONCE = 8
MB = 2**20


def count_hops(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Return a list that grows with each thread hop, by what its thread hands back to the event loop."""
    hops: list[str] = []
    schedule = loop.call_soon_threadsafe

    def count(*args: Any, **kwargs: Any) -> asyncio.Handle:
        hops.append(threading.current_thread().name)
        return schedule(*args, **kwargs)

    loop.__dict__["call_soon_threadsafe"] = count
    return hops


class SyncCountingBlobs(LocalBlobs):
    """A store that counts its syncs."""

    syncs = 0

    def sync(self, descriptor: int) -> None:
        self.syncs += 1
        super().sync(descriptor)

    def write_durably(self, descriptor: int, data: bytes) -> None:
        self.syncs += 1
        super().write_durably(descriptor, data)


async def keep_answering(visit: Visit) -> None:
    """Answer every request of a connection with a small image."""
    while True:
        await visit.send(head("200 OK", f"Content-Length: {len(PNG)}") + PNG)
        visit.head = await visit.reader.readuntil(b"\r\n\r\n")


async def send_large(visit: Visit) -> None:
    block = bytes(MB // 4)
    await visit.send(head("200 OK", f"Content-Length: {20 * MB}"))
    for _ in range(80):
        await visit.send(block)


async def repeat(work: Any) -> None:
    """Call `work` a hundred times, eight at once."""

    async def some() -> None:
        for _ in range(REQUESTS // AT_ONCE + 1):
            await work()

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def read_all(fetcher: Fetcher, url: str) -> int:
    async with fetcher.open(url, max_bytes=32 * MB) as chunks:
        return sum([len(chunk) async for chunk in chunks])


@pytest.mark.anyio
async def test_downloads_share_as_many_connections_as_run_at_once() -> None:
    async with serve(keep_answering) as server:
        fetcher = Fetcher(allow=[server.host])
        async with aclosing(fetcher):
            await repeat(lambda: read_all(fetcher, server.url()))
        assert server.connections <= AT_ONCE


@pytest.mark.anyio
async def test_submits_share_as_many_connections_as_run_at_once() -> None:
    client = ApiClient(timeout=5, max_connections=AT_ONCE)
    async with serve(keep_answering) as server, aclosing(client):
        await repeat(lambda: client.request("GET", server.url()))
        assert server.connections <= AT_ONCE


@pytest.mark.anyio
async def test_request_over_a_kept_connection_starts_one_timer_and_stops_it() -> None:
    loop, timers = asyncio.get_running_loop(), list[asyncio.TimerHandle]()
    schedule = loop.call_later

    def keep(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        timers.append(schedule(*args, **kwargs))
        return timers[-1]

    async with serve(keep_answering) as server, aclosing(ApiClient(timeout=5, max_connections=1)) as client:
        await client.request("GET", server.url())
        loop.__dict__["call_later"] = keep
        for _ in range(10):
            assert (await client.request("GET", server.url())).body == PNG
    assert len(timers) == 10
    assert all(timer.cancelled() for timer in timers), "the next request has the whole time again"


@pytest.mark.anyio
async def test_small_download_over_a_kept_connection_starts_one_timer() -> None:
    """For the head of the response; what has arrived with it is read without one."""
    loop, timers = asyncio.get_running_loop(), 0
    schedule = loop.call_at

    def count(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return schedule(*args, **kwargs)

    async with serve(keep_answering) as server, aclosing(Fetcher(allow=[server.host])) as fetcher:
        await read_all(fetcher, server.url())
        loop.__dict__["call_at"] = count
        for _ in range(10):
            assert await read_all(fetcher, server.url()) == len(PNG)
        assert timers == 10


@pytest.mark.anyio
async def test_downloads_from_many_hosts_keep_a_limited_number_of_connections() -> None:
    """A caller chooses the hosts; open files are limited."""
    ended = 0

    async def answer_until_end(visit: Visit) -> None:
        nonlocal ended
        try:
            await keep_answering(visit)
        except asyncio.IncompleteReadError:
            ended += 1

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with serve(answer_until_end) as server:
        hosts = [f"host{number}.example.com:{server.port}" for number in range(MAX_IDLE + 20)]
        async with aclosing(Fetcher(allow=hosts, resolve=resolve)) as fetcher:
            for host in hosts:
                await read_all(fetcher, f"http://{host}/")
            await asyncio.sleep(0.05)
            assert server.connections - ended == MAX_IDLE


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("owner", "syncs"), [("task_{}_01", 30), ("task_0190ab12345{:032x}", 20)], ids=["own folder", "shared folder"]
)
async def test_small_image_costs_one_thread_hop_and_few_syncs(tmp_path: Path, owner: str, syncs: int) -> None:
    """The file and its folder, which is synced once if it is shared; the root once per outer folder."""

    async def chunks() -> AsyncIterator[bytes]:
        yield PNG

    hops, blobs = count_hops(asyncio.get_running_loop()), SyncCountingBlobs(tmp_path)
    intake = Intake.in_threads(blobs, max_pixels=10**6, max_decode_bytes=MB)
    await intake.from_stream(owner.format(100), chunks(), max_bytes=MB)
    hops.clear()
    blobs.syncs = 0
    for number in range(10):
        await intake.from_stream(owner.format(number), chunks(), max_bytes=MB)
    assert (len(hops), blobs.syncs) == (10, syncs)


@pytest.mark.anyio
async def test_large_download_is_written_in_few_pieces_and_little_memory(tmp_path: Path) -> None:
    """Each piece is one thread hop; a slow disk makes the server wait instead of filling the memory."""
    pieces = []
    async with serve(send_large) as server, aclosing(Fetcher(allow=[server.host])) as fetcher:
        await read_all(fetcher, server.url())
        tracemalloc.start()
        try:
            download, draft = fetcher.open(server.url(), max_bytes=32 * MB), LocalBlobs(tmp_path).new_draft("task_1")
            async with draft, download as chunks:
                async for chunk in chunks:
                    pieces.append(len(chunk))
                    await draft.write(chunk)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert sum(pieces) == 20 * MB
    assert min(pieces[:-1]) >= MB // 4
    assert peak < 3 * MB


def test_body_of_known_length_is_neither_parsed_nor_copied() -> None:
    """The bytes of the socket are those that the reader gets."""
    parser = ResponseParser()
    parser.feed(head("200 OK", f"Content-Length: {MB}"))
    received = [bytes(MB // 4) for _ in range(4)]
    for data in received:
        parser.feed(data)
    assert [parser.take(MB // 4) is data for data in received] == [True] * 4
    assert parser.is_complete


def test_ended_response_is_freed_without_the_garbage_collector() -> None:
    """Each may hold a quarter of a megabyte of an image."""
    gc.disable()
    try:
        parser = ResponseParser()
        parser.feed(head("200 OK", "Content-Length: 2") + b"{}")
        assert parser.is_complete
        freed = weakref.ref(parser)
        del parser
        assert freed() is None
    finally:
        gc.enable()
