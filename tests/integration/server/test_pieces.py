"""Tiny pieces: chunks of a byte, interim responses and documents of many values do not hold up other requests."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from broker.api.http.request_body import read_json_object
from broker.errors import DownloadError, ProviderError
from broker.net.api_client import ApiClient
from broker.net.documents import MAX_INLINE_BYTES, parse_off_loop
from broker.net.fetcher import Fetcher
from broker.net.pieces import (
    EVENTS_PER_TURN,
    MAX_SMALL_CHUNKS,
    MIN_CHUNK_BYTES,
    PAUSE_SECONDS,
    TurnCounter,
)
from broker.net.response_parser import MAX_INTERIM_RESPONSES
from tests.support.api import ApiBroker, open_api
from tests.support.faulty_http import Network, Script, Visit, head, sends, serve
from tests.support.http_parsers import BACKENDS, MemoryTransport, connect
from webhooks.strict_json import MAX_VALUES

pytestmark = pytest.mark.anyio

WEBHOOK = "/api/webhook/nano-banana"
CREATE = "/api/generate/image"
CHUNKED = "Transfer-Encoding: chunked"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
OK = head("200 OK", "Content-Length: 2") + b"{}"
TOO_MANY_HINTS = HINT * (MAX_INTERIM_RESPONSES + 1) + OK
LIMIT = "more than 4,096 chunks of less than 64 bytes on average"


def request_head(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", CHUNKED, *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def in_chunks(body: bytes, size: int = 1) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def order(size: int) -> bytes:
    """Return an order of `size` bytes."""
    empty = json.dumps({"prompt": "x", "padding": ""}).encode()
    return empty[:-2] + b"x" * (size - len(empty)) + empty[-2:]


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[ApiBroker]:
    async with open_api(tmp_path, sockets=True) as opened:
        yield opened


# -- requests


@pytest.mark.parametrize("path", [WEBHOOK, CREATE])
async def test_request_in_tiny_chunks_is_rejected_with_the_limit(broker: ApiBroker, path: str) -> None:
    """The answer arrives although the client still sends, and the connection ends."""
    answer = await broker.send_raw(request_head(path) + in_chunks(bytes(MAX_SMALL_CHUNKS + 1)) + bytes(100_000))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close\r\n" in answer.lower()
    error = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert error["code"] == "invalid_request"
    assert error["error"] == f"The body came in {LIMIT}: send larger ones."
    assert (await broker.client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("size", "chunk"), [(MAX_SMALL_CHUNKS, 1), (100 * MAX_SMALL_CHUNKS, 100), (70 * MAX_SMALL_CHUNKS, MIN_CHUNK_BYTES)]
)
async def test_request_in_few_or_larger_chunks_is_accepted(broker: ApiBroker, size: int, chunk: int) -> None:
    closing_head = request_head(CREATE, "Connection: close")
    assert (await broker.send_raw(closing_head + in_chunks(order(size), chunk))).startswith(b"HTTP/1.1 202 ")


async def test_chunks_are_not_parsed_after_the_response(broker: ApiBroker) -> None:
    """Malformed ones change nothing: the rest of the body is discarded until the client closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    with closing(writer):
        writer.write(request_head("/nope") + b"1\r\nx\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
            for _ in range(20):
                writer.write(b"zz\r\n" * 1000)
                await writer.drain()
    assert (await broker.client.get("/health")).status_code == 200


@pytest.mark.parametrize("chunk_bytes", [1, 300])
async def test_other_tasks_run_between_the_events_of_one_read(parser: str, chunk_bytes: int) -> None:
    """A few hundred per turn of the event loop; nothing more is read before those are used up.

    A turn of 300 bytes each is more than the server holds for a handler, which resumes the reading.
    """
    parts: list[bytes] = []
    complete = asyncio.Event()

    async def collect(scope: Any, receive: Any, send: Any) -> None:
        while not complete.is_set():
            message = await receive()
            parts.append(message["body"])
            if not message["more_body"]:
                complete.set()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    pipe = MemoryTransport()
    protocol = connect(parser, collect, pipe)
    body = bytes(4000 * chunk_bytes)
    protocol.data_received(request_head("/") + in_chunks(body, chunk_bytes))
    reading = [pipe.reads]
    async with asyncio.timeout(5):
        while not complete.is_set():
            await asyncio.sleep(0)
            reading.append(pipe.reads)
    assert b"".join(parts) == body
    assert max(len(part) for part in parts) <= EVENTS_PER_TURN * chunk_bytes
    assert not any(reading[: 4000 // EVENTS_PER_TURN])
    assert pipe.reads
    protocol.connection_lost(None)


@pytest.mark.parametrize("content", [b"\r\n", b"\n", b"0\r\n\r\n"])
async def test_content_that_looks_like_chunks_takes_no_longer_than_other_content(parser: str, content: bytes) -> None:
    """A chunk is passed on as it arrives: what it contains is not searched for ends."""
    body, parts = content * 20_000, list[bytes]()

    async def collect(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["more_body"] or message["body"]:
            parts.append(message["body"])

    transport = MemoryTransport()
    protocol = connect(parser, collect, transport)
    data = request_head("/x") + in_chunks(body, len(body))
    for start in range(0, len(data), 65_536):
        protocol.data_received(data[start : start + 65_536])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert b"".join(parts) == body
    assert len(parts) <= 5
    protocol.connection_lost(None)


async def test_head_in_pieces_of_one_byte_is_searched_once() -> None:
    """Searched again for each piece, one of 16 KiB would take more than a second of the event loop."""
    costs = dict[str, float]()
    for parser in BACKENDS:
        protocol = connect(parser, receive_nothing, MemoryTransport())
        protocol.data_received(b"GET /x HTTP/1.1\r\nHost: a\r\nX: ")
        began = time.process_time()
        for _ in range(16_000):
            protocol.data_received(b"x")
        costs[parser] = time.process_time() - began
        protocol.connection_lost(None)
    assert costs["httptools"] < 10 * costs["h11"]


async def receive_nothing(scope: Any, receive: Any, send: Any) -> None:
    await receive()


def test_turn_of_few_bytes_ends_with_a_pause() -> None:
    """A few such connections would use up the processor; those that send larger pieces are not slowed down."""
    turn = TurnCounter()
    for size, pause_seconds in ((1, PAUSE_SECONDS), (1024, 0.0), (1023, PAUSE_SECONDS)):
        for _ in range(EVENTS_PER_TURN):
            assert not turn.is_over
            turn.add(size)
        assert turn.is_over
        assert turn.start_next() == pause_seconds


# -- responses

HOSTILE: dict[str, tuple[Script, str]] = {
    "tiny chunks": (sends(head("200 OK", CHUNKED), in_chunks(bytes(MAX_SMALL_CHUNKS + 1))), LIMIT),
    "interim responses": (sends(TOO_MANY_HINTS), "more than 16 interim responses"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_response_in_tiny_pieces_is_an_error_with_the_limit(kind: str) -> None:
    script, limit = HOSTILE[kind]
    async with serve(script) as server, asyncio.timeout(5), _api_client() as client:
        with pytest.raises(ProviderError, match=limit):
            await client.request("GET", server.url())
        with pytest.raises(DownloadError, match=limit) as caught:
            await _download(Fetcher(allow=[server.host]), server.url())
    assert caught.value.code == "download_failed"


@asynccontextmanager
async def _api_client() -> AsyncIterator[ApiClient]:
    client = ApiClient(timeout=5, max_connections=1)
    try:
        yield client
    finally:
        await client.aclose()


async def _download(fetcher: Fetcher, url: str) -> bytes:
    async with fetcher.open(url, max_bytes=2**20) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_some_interim_responses_are_skipped_however_they_arrive() -> None:
    """Each request of a connection may have as many."""
    few = HINT * MAX_INTERIM_RESPONSES + OK

    async def answer_twice(visit: Visit) -> None:
        await visit.send(few)
        await visit.reader.readuntil(b"\r\n\r\n")
        for start in range(0, len(few), 7):
            await visit.send(few[start : start + 7])
            await asyncio.sleep(0)

    async with serve(answer_twice) as server, _api_client() as client:
        for _ in range(2):
            assert (await client.request("GET", server.url())).json() == {}
        assert server.connections == 1


async def test_interim_responses_are_limited_on_a_connection_that_is_used_again() -> None:
    async def answer_twice(visit: Visit) -> None:
        await visit.send(OK)
        await visit.reader.readuntil(b"\r\n\r\n")
        await visit.send(TOO_MANY_HINTS)

    async with serve(answer_twice) as server, _api_client() as client:
        await client.request("GET", server.url())
        with pytest.raises(ProviderError, match="more than 16 interim responses"):
            await client.request("GET", server.url())
        assert server.connections == 1


async def test_interim_responses_are_limited_over_tls() -> None:
    network = Network([TOO_MANY_HINTS])
    fetcher = Fetcher(dial=network, tls=network.tls)
    with pytest.raises(DownloadError, match="more than 16 interim responses"):
        await _download(fetcher, "https://93.184.216.34/")


async def test_other_tasks_run_between_the_chunks_of_a_response() -> None:
    """All of it has arrived at once, so that nothing else would interrupt the parser."""
    reply = head("200 OK", CHUNKED) + in_chunks(bytes(4000))
    turns = await _turns_during(partial(_download, Fetcher(dial=Network([reply])), "http://93.184.216.34/"))
    assert turns >= 4000 // EVENTS_PER_TURN


async def _turns_during(work: Callable[[], Any]) -> int:
    """Return the turns of another task until the work is done."""
    working, turns = asyncio.ensure_future(work()), 0
    while not working.done():
        turns += 1
        await asyncio.sleep(0)
    await working
    return turns


# -- documents


async def test_large_documents_are_parsed_in_another_thread() -> None:
    here = threading.get_ident()
    assert await parse_off_loop(MAX_INLINE_BYTES, threading.get_ident) == here
    assert await parse_off_loop(MAX_INLINE_BYTES + 1, threading.get_ident) != here


@dataclass
class Recorder:
    """A provider, and the threads in which it read callbacks."""

    inner: Any
    threads: list[int]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def job_ids(self, body: Any) -> tuple[str, ...]:
        self.threads.append(threading.get_ident())
        ids: tuple[str, ...] = self.inner.job_ids(body)
        return ids


async def test_large_callback_is_read_once_and_in_another_thread(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        providers = broker.services.verifier.providers
        name, provider = next(iter(providers.items()))
        recorder = Recorder(provider, [])
        broker.mount(
            receiver=replace(
                broker.services.receiver,
                verifier=replace(broker.services.verifier, providers={**providers, name: recorder}),
            )
        )
        for size in (10, MAX_INLINE_BYTES):
            assert (await broker.client.post(WEBHOOK, json={"x": "x" * size})).status_code == 404
    assert [thread == threading.get_ident() for thread in recorder.threads] == [True, False]


@pytest.mark.parametrize("size", [100, MAX_INLINE_BYTES])
async def test_large_request_is_parsed_in_another_thread(size: int) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": order(size + 1), "more_body": False}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    thread = await read_json_object(request, 10**6, lambda document: threading.get_ident())
    assert (thread == threading.get_ident()) == (size < MAX_INLINE_BYTES)


async def test_document_of_too_many_values_is_rejected(broker: ApiBroker) -> None:
    """What strings contain does not count."""
    values = [0] * (MAX_VALUES + 1)
    assert (await broker.client.post(WEBHOOK, json={"values": values})).status_code == 400
    answer = await broker.client.post(CREATE, json={"prompt": "x", "values": values})
    assert answer.status_code == 400
    assert answer.json()["error"] == "The body has more than 32,768 values: send less."
    wordy = {"prompt": "x", "padding": ['[{,\\"' * MAX_VALUES] * 2}
    assert (await broker.client.post(CREATE, json=wordy)).status_code == 202
    script = sends(head("200 OK", "Connection: close"), json.dumps(values).encode())
    async with serve(script) as server, _api_client() as client:
        with pytest.raises(ProviderError, match="not sound JSON"):
            (await client.request("GET", server.url())).json()
