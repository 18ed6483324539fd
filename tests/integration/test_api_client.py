"""ApiClient: the class of an error states whether the provider may have seen the request, which may cost money."""

from __future__ import annotations

import asyncio
import email.parser
import email.policy
import json
import socket
import traceback
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from broker.errors import NotSent, ProviderError
from broker.net.api_client import MAX_CONCURRENT_UPLOADS, ApiClient, HttpResponse
from broker.net.http_request import FilePart, StreamedBody
from broker.net.url_policy import redact_url
from tests.support.faulty_http import Script, Visit, answers, head, pieces, rst, sends, serve, silence

pytestmark = pytest.mark.anyio

SECRET = "sk-s3cret"
HEADERS = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture
async def client() -> AsyncIterator[ApiClient]:
    client = ApiClient(timeout=0.3, max_connections=4, max_answer_bytes=10_000)
    yield client
    await client.aclose()


async def failure(client: ApiClient, url: str, **request: Any) -> ProviderError:
    """Return the error of a request, after checking that its traceback holds no secret."""
    with pytest.raises(ProviderError) as caught:
        await client.request("POST", f"{url}?key={SECRET}", headers=HEADERS, json={"prompt": SECRET}, **request)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return caught.value


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def half_head(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200 OK\r\nContent-")


async def half_body(visit: Visit) -> None:
    await visit.send(head("200 OK", "Content-Length: 100"), b'{"data":')


async def dripping(visit: Visit) -> None:
    await visit.send(head("200 OK", "Content-Length: 1000"))
    for _ in range(1000):
        await visit.send(b" ")
        await asyncio.sleep(0.01)


async def echo(visit: Visit) -> None:
    """Not HTTP: it repeats the request, key included."""
    await visit.send(visit.head)


AFTER_SENDING: dict[str, Script] = {
    "closes": sends(),
    "resets": rst,
    "never answers": silence,
    "half a head": half_head,
    "half a body": half_body,
    "drips": dripping,
    "echoes": echo,
    "not http": sends(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "too long, announced": answers("200 OK", bytes(10_001)),
    "too long, chunked": sends(
        head("200 OK", "Transfer-Encoding: chunked"), b"2711\r\n" + bytes(10_001) + b"\r\n0\r\n\r\n"
    ),
    "encoded": answers("200 OK", b"x", "Content-Encoding: gzip"),
}


@pytest.mark.parametrize("fault", AFTER_SENDING)
async def test_error_after_sending_means_unknown_outcome(client: ApiClient, fault: str) -> None:
    """Never `NotSent`: a repeated request could cost twice."""
    async with serve(AFTER_SENDING[fault]) as server, asyncio.timeout(5):
        error = await failure(client, server.url("/createTask"))
    assert type(error) is ProviderError
    assert not error.permanent
    assert server.connections == 1
    assert f"POST {server.url('/createTask')}" in str(error)


async def test_timeout_covers_the_complete_response() -> None:
    """Read time-outs alone restart with every byte."""
    client = ApiClient(timeout=5, max_connections=1)

    async def slow(visit: Visit) -> None:
        await visit.send(head("200 OK", "Content-Length: 20"))
        for _ in range(20):
            await visit.send(b"1")
            await asyncio.sleep(0.01)

    async with serve(slow) as server:
        assert type(await failure(client, server.url(), timeout=0.1)) is ProviderError
        assert (await client.request("GET", server.url())).json() == 11_111_111_111_111_111_111
    await client.aclose()


async def test_refused_connection_means_not_sent(client: ApiClient) -> None:
    error = await failure(client, f"http://127.0.0.1:{unused_port()}/x")
    assert isinstance(error, NotSent)
    assert (error.permanent, error.at) == (False, "connection")


async def test_unknown_name_means_not_sent(client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = await failure(client, "http://api.example.com/x")
    assert isinstance(error, NotSent)
    assert error.at == "name"


async def test_failed_handshake_means_not_sent(client: ApiClient) -> None:
    """The key is sent only inside TLS; a server without TLS never receives it."""
    seen = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1000))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await failure(client, f"https://127.0.0.1:{port}/x")
    assert isinstance(error, NotSent)
    assert error.at == "tls"
    assert len(seen) == 1
    assert SECRET.encode() not in seen[0]


async def test_hanging_handshake_means_not_sent(client: ApiClient) -> None:
    async with serve(silence) as server:
        error = await failure(client, f"https://{server.host}/x", timeout=0.1)
        assert isinstance(error, NotSent)
        assert error.at == "time-out"
        assert server.heads == []


async def test_exhausted_pool_means_not_sent() -> None:
    client = ApiClient(timeout=5, max_connections=1)
    async with serve(silence) as server:
        busy = asyncio.create_task(client.request("POST", server.url()))
        await server.called.wait()
        assert type(await failure(client, server.url(), timeout=0.05)) is NotSent
        assert server.connections == 1
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
        assert type(await failure(client, server.url(), timeout=0.05)) is ProviderError
    await client.aclose()


@pytest.mark.parametrize(
    "url",
    ["", "api.example.com", "ftp://api.example.com/", "http:///x", "http://[::1/", "http://x:99999/", "http://\n/"],
)
async def test_unusable_url_is_a_permanent_error(client: ApiClient, url: str) -> None:
    with pytest.raises(NotSent) as caught:
        await client.request("GET", url, headers=HEADERS)
    assert caught.value.permanent


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}…", f"\x00{SECRET}", f"{SECRET}\r\nX: y"])
async def test_invalid_header_value_is_named_but_not_shown(client: ApiClient, key: str) -> None:
    """A line break copied along with the key is the most common mistake, and the HTTP library would quote it."""
    with pytest.raises(NotSent, match="authorization") as caught:
        await client.request("GET", "http://127.0.0.1:9/", headers={"authorization": key})
    assert caught.value.permanent
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": "\ud800"}])
async def test_unencodable_json_means_not_sent(client: ApiClient, body: Any) -> None:
    with pytest.raises(NotSent) as caught:
        await client.request("POST", "http://127.0.0.1:9/", json=body)
    assert caught.value.permanent


async def test_closed_idle_connection_means_unknown_outcome(client: ApiClient) -> None:
    """The provider closes the connection just as the second request arrives: it may have read it."""

    async def once(visit: Visit) -> None:
        await visit.send(head("200 OK", "Content-Length: 2"), b"{}")
        await visit.reader.readuntil(b"\r\n\r\n")

    async with serve(once) as server:
        assert (await client.request("GET", server.url())).json() == {}
        assert type(await failure(client, server.url())) is ProviderError
        assert server.connections == 1


async def test_request_is_never_sent_twice(client: ApiClient) -> None:
    """The provider reads the order and closes the kept connection: it may be working on it."""
    requests: list[bytes] = []

    async def read_and_close(visit: Visit) -> None:
        requests.append(visit.head)
        await visit.send(head("200 OK", "Content-Length: 2"), b"{}")
        requests.append(await visit.reader.readuntil(b"\r\n\r\n"))

    async with serve(read_and_close) as server:
        await client.request("POST", server.url())
        assert type(await failure(client, server.url())) is ProviderError
        assert (len(requests), server.connections) == (2, 1)


@pytest.mark.parametrize("ending", ["closed", "bytes"])
async def test_connection_that_ended_while_idle_is_replaced(client: ApiClient, ending: str) -> None:
    """Nothing was sent over it yet. Bytes that nobody asked for are not the answer to the next request."""

    async def answer(visit: Visit) -> None:
        await visit.send(head("200 OK", "Content-Length: 2"), b"{}")
        if ending == "bytes":
            await asyncio.sleep(0.01)
            await visit.send(head("200 OK", "Content-Length: 6"), b"[false")
            await silence(visit)

    async with serve(answer) as server, asyncio.timeout(5):
        for number in range(3):
            assert (await client.request("POST", server.url())).json() == {}
            assert server.connections == number + 1
            await asyncio.sleep(0.02)


async def test_connections_are_reused(client: ApiClient) -> None:
    async def answer_each_request(visit: Visit) -> None:
        while True:
            await visit.send(head("200 OK", "Content-Length: 2"), b"{}")
            await visit.reader.readuntil(b"\r\n\r\n")

    async with serve(answer_each_request) as server:
        for _ in range(5):
            await client.request("GET", server.url())
        assert server.connections == 1
        await client.aclose()


async def test_request_has_only_the_given_headers(client: ApiClient) -> None:
    """No cookie of an earlier response, no compression; parameters are added to those of the URL."""
    script = answers("302 Found", b"{}", "Set-Cookie: a=b", "Location: /elsewhere", "X-A: 1", "X-A: 2")
    async with serve(script) as server:
        for _ in range(2):
            answer = await client.request("GET", server.url("/x?a=1"), params={"b": "ü&"}, headers=HEADERS)
            assert (answer.status, answer.headers["location"], answer.headers["x-a"]) == (302, "/elsewhere", "1, 2")
    assert [said.split(b"\r\n")[0] for said in server.heads] == [b"GET /x?a=1&b=%C3%BC%26 HTTP/1.1"] * 2
    for said in server.heads:
        names = {line.partition(b":")[0].lower() for line in said.strip().split(b"\r\n")[1:]}
        assert names == {b"host", b"user-agent", b"accept", b"accept-encoding", b"authorization"}
        assert b"identity" in said


async def test_json_body_is_sent_as_utf8(client: ApiClient) -> None:
    bodies = []

    async def keep(visit: Visit) -> None:
        bodies.append(await visit.read_body())
        await answers("200 OK", b"{}")(visit)

    async with serve(keep) as server:
        await client.request("POST", server.url(), json={"prompt": "猫"})
    assert json.loads(bodies[0]) == {"prompt": "猫"}
    assert b"content-type: application/json" in server.heads[0].lower()


async def test_multipart_upload_arrives_intact(client: ApiClient) -> None:
    """Its length is announced, and names cannot break out of their quotes."""
    image = bytes(range(256)) * 4096
    bodies = []

    async def keep(visit: Visit) -> None:
        bodies.append(await visit.read_body())
        await answers("200 OK", b"{}")(visit)

    chunks = partial(pieces, image[:5], image[5:70_000], image[70_000:])
    files = [
        FilePart(name="file", filename='a"; name="x\r\n.png', media_type="image/png", read=chunks),
        FilePart(name="file", filename="b.jpg", media_type="image/jpeg", read=partial(pieces, b"second")),
    ]
    async with serve(keep) as server:
        await client.request("POST", server.url(), form={"path": "images/ü"}, files=files, timeout=5)
        await client.request("POST", server.url(), form={"n": "1"})
    assert bodies[1].split(b"\r\n")[1:4] == [b'Content-Disposition: form-data; name="n"', b"", b"1"]
    content_type = next(line for line in server.heads[0].split(b"\r\n") if line.lower().startswith(b"content-type:"))
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(content_type + b"\r\n\r\n" + bodies[0])
    parts = list(message.iter_parts())
    assert [
        (part.get_param("name", header="content-disposition"), part.get_payload(decode=True)) for part in parts
    ] == [("path", "images/ü".encode()), ("file", image), ("file", b"second")]
    assert [part.get_content_type() for part in parts[-2:]] == ["image/png", "image/jpeg"]
    assert parts[-2].get_filename() == "a%22; name=%22x%0D%0A.png"


async def test_at_most_four_uploads_run_at_once() -> None:
    client = ApiClient(timeout=5, max_connections=20)
    running, most = 0, 0
    full = asyncio.Event()

    async def count(visit: Visit) -> None:
        nonlocal running, most
        await visit.read_body()
        running += 1
        most = max(most, running)
        if running == MAX_CONCURRENT_UPLOADS:
            full.set()
        await full.wait()  # every slot is taken before the first upload is answered
        running -= 1
        await answers("200 OK", b"{}")(visit)

    file = FilePart(name="file", filename="a.png", media_type="image/png", read=partial(pieces, b"content"))
    async with serve(count) as server:
        await asyncio.gather(*(client.request("POST", server.url(), files=[file]) for _ in range(10)))
        assert (most, len(server.heads)) == (4, 10)
        await client.aclose()


async def test_error_reading_our_own_file_is_not_a_provider_error(client: ApiClient) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("disk on fire")

    file = FilePart(name="file", filename="a", media_type="image/png", read=broken)
    with pytest.raises(OSError, match="disk on fire"):
        await client.request("POST", f"http://127.0.0.1:{unused_port()}/", files=[file])


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"data": {"taskId": "1"}}', {"data": {"taskId": "1"}}),
        (b' "x" ', "x"),
        (b"null", None),
        (b'{"msg": "cut \\ud83d"}', {"msg": "cut \ufffd"}),
        (b'{"msg": "\\uD83D\\uDE00"}', {"msg": "\U0001f600"}),
        (b"[" * 60 + b"]" * 60, json.loads("[" * 60 + "]" * 60)),
        (b'{"data": {"taskId": "1"}, "msg": "a", "msg": "b"}', {"data": {"taskId": "1"}, "msg": "b"}),
    ],
)
def test_sound_json_is_parsed(body: bytes, value: Any) -> None:
    assert HttpResponse(status=200, headers={}, body=body).json() == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"<html><body>s3cret</body></html>",
        b'{"data": {"taskId": "s3cret',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": "s3cret \xff"}',
        b"\xff\xfe{\x00}\x00",
        b"[" * 70 + b"]" * 70,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b"{} s3cret",
        b"{'a': 1}",
        b'{"a": "\x00"}',
    ],
)
def test_unsound_json_is_a_provider_error_without_quotes(body: bytes) -> None:
    with pytest.raises(ProviderError) as caught:
        HttpResponse(status=502, headers={}, body=body).json()
    assert "HTTP 502" in str(caught.value)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_response_repr_has_no_content() -> None:
    response = HttpResponse(status=200, headers={"set-cookie": SECRET}, body=SECRET.encode())
    assert repr(response) == "HttpResponse(status=200)"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://cdn.example.com/a/b.png?X-Amz-Signature=s3cret#s3cret", "https://cdn.example.com/a/b.png"),
        ("HTTP://Example.COM:8080", "http://example.com:8080/"),
        ("http://[::1]:80/x", "http://[::1]/x"),
        ("http://127.0.0.1/", "http://127.0.0.1/"),
        ("https://user:s3cret@example.com/x", "(an unreadable address)"),
        ("https://user:s3/cret@example.com/x", "(an unreadable address)"),
        ("https://example.com/\x1b[31m", "(an unreadable address)"),
        ("data:image/png;base64,s3cret", "(an unreadable address)"),
        ("", "(an unreadable address)"),
        ("https://example.com/" + "a" * 500, "https://example.com/" + "a" * 199 + "…"),
    ],
)
def test_redacted_url_has_no_secrets(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def streamed(*chunks: bytes, size: int | None = None) -> StreamedBody:
    async def read() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return StreamedBody(size=sum(map(len, chunks)) if size is None else size, chunks=read())


async def read_stream(client: ApiClient, url: str, *, timeout: float = 5.0, body: StreamedBody | None = None) -> bytes:
    async with client.stream(
        "POST", f"{url}?key={SECRET}", headers=HEADERS, timeout=timeout, max_bytes=10_000, body=body or streamed(b"{}")
    ) as response:
        return b"".join([chunk async for chunk in response.chunks])


async def test_streamed_body_is_sent_whole_with_its_length(client: ApiClient) -> None:
    received: list[bytes] = []

    async def keep(visit: Visit) -> None:
        received.append(await visit.read_body())
        await answers("200 OK", b"done")(visit)

    async with serve(keep) as server:
        assert await read_stream(client, server.url(), body=streamed(b"[1,", b"2]")) == b"done"
    assert received == [b"[1,2]"]
    assert b"content-type: application/json" in server.heads[0].lower()


async def test_streamed_response_may_take_longer_than_other_requests(client: ApiClient) -> None:
    async def slow(visit: Visit) -> None:
        await visit.read_body()
        await asyncio.sleep(0.5)  # the time-out of the client is 0.3 seconds
        await answers("200 OK", b"late")(visit)

    async with serve(slow) as server:
        assert await read_stream(client, server.url()) == b"late"


@pytest.mark.parametrize("fault", AFTER_SENDING)
async def test_error_while_a_response_is_streamed_means_unknown_outcome(client: ApiClient, fault: str) -> None:
    async with serve(AFTER_SENDING[fault]) as server, asyncio.timeout(5):
        with pytest.raises(ProviderError) as caught:
            await read_stream(client, server.url(), timeout=0.3)
    assert type(caught.value) is ProviderError
    assert SECRET not in "".join(traceback.format_exception(caught.value))


async def test_body_that_cannot_be_completed_is_not_sent(client: ApiClient) -> None:
    """Half a body is not an order."""

    async def read() -> AsyncIterator[bytes]:
        yield b"{"
        raise NotSent("a reference image cannot be read", permanent=True)

    async with serve(silence) as server:
        with pytest.raises(NotSent):
            await read_stream(client, server.url(), body=StreamedBody(size=10, chunks=read()))
