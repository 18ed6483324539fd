"""Both parsers: what is refused, what is understood, and that they never understand a request differently."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.http_parsers import BACKENDS, Exchange, exchange

HOST: Final = b"Host: a\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked"
LAST: Final = b"0\r\n\r\n"


def get(line: bytes = b"GET /x HTTP/1.1", *headers: bytes, host: bytes = HOST, body: bytes = b"") -> bytes:
    return line + b"\r\n" + host + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return get(b"POST /x HTTP/1.1", *headers, body=body)


def with_header(line: bytes) -> bytes:
    return get(b"GET /x HTTP/1.1", line)


def chunks(body: bytes) -> bytes:
    return post(CHUNKED, body=body)


def with_length(value: bytes, body: bytes = b"hello") -> bytes:
    return post(b"Content-Length: " + value, body=body)


REFUSED: Final = {
    "junk": b"junk\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "SSH": b"SSH-2.0-x\r\n\r\n",
    "PROXY protocol": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + get(),
    "nothing": b"\r\n\r\n",
    "blank line first": b"\r\n" + get(),
    "line feed first": b"\n" + get(),
    "space first": b" " + get(),
    "two spaces": get(b"GET  /x HTTP/1.1"),
    "two spaces before the version": get(b"GET /x  HTTP/1.1"),
    "space after the version": get(b"GET /x HTTP/1.1 "),
    "no version": get(b"GET /x"),
    "HTTP in lower case": get(b"GET /x http/1.1"),
    "ICE": get(b"GET /x ICE/1.0"),
    "RTSP": get(b"GET /x RTSP/1.0"),
    "version 1.10": get(b"GET /x HTTP/1.10"),
    "version 1": get(b"GET /x HTTP/1"),
    "control in target": get(b"GET /\x01 HTTP/1.1"),
    "delete in target": get(b"GET /\x7f HTTP/1.1"),
    "tab in target": get(b"GET /\tx HTTP/1.1"),
    "no ASCII in target": get(b"GET /\xc3\xa9 HTTP/1.1"),
    "no host": get(host=b""),
    "two hosts": get(host=HOST + HOST),
    "two hosts in 1.0": get(b"GET /x HTTP/1.0", host=HOST + HOST),
    "carriage returns": b"GET /x HTTP/1.1\rHost: a\r\r\n\r\n",
    "carriage return in a value": with_header(b"X: a\rb"),
    "two carriage returns": b"GET /x HTTP/1.1\r\r\nHost: a\r\n\r\n",
    "fold in the first line": b"GET /x HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n",
    "NUL in a value": with_header(b"X: a\x00b"),
    "NUL in a name": with_header(b"X\x00: a"),
    "no name": with_header(b": a"),
    "no colon": with_header(b"X"),
    "space before the colon": with_header(b"X : a"),
    "tab before the colon": with_header(b"X\t: a"),
    "space in a name": with_header(b"X Y: a"),
    "parenthesis in a name": with_header(b"X(: a"),
    "at sign in a name": with_header(b"X@: a"),
    "no ASCII in a name": with_header(b"X\xe9: a"),
    "signed length": with_length(b"+5"),
    "negative length": with_length(b"-1"),
    "hexadecimal length": with_length(b"0x5"),
    "length with underscore": with_length(b"5_0"),
    "length of two numbers": with_length(b"5 5"),
    "no length": with_length(b""),
    "length in other digits": with_length("٥".encode()),
    "length after a vertical tab": with_length(b"\x0b5"),
    "two lengths": post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    "length and chunks": post(b"Content-Length: 5", CHUNKED, body=LAST),
    "chunks and length": post(CHUNKED, b"Content-Length: 5", body=LAST),
    "chunks twice": post(CHUNKED, CHUNKED, body=LAST),
    **{
        f"coding {coding}": post(b"Transfer-Encoding: " + coding.encode(), body=LAST)
        for coding in ("gzip", "gzip, chunked", "chunked, gzip", "identity", "", "xchunked", "chunked;a", "\x0bchunked")
    },
    "quoted coding": post(b'Transfer-Encoding: "chunked"', body=LAST),
    "comma before the coding": post(b"Transfer-Encoding: ,chunked", body=LAST),
    "comma after the coding": post(b"Transfer-Encoding: chunked,", body=LAST),
    "empty chunk size": chunks(b"\r\nab\r\n0\r\n\r\n"),
    "space before a chunk size": chunks(b" 2\r\nab\r\n0\r\n\r\n"),
    "signed chunk size": chunks(b"+2\r\nab\r\n0\r\n\r\n"),
    "prefixed chunk size": chunks(b"0x2\r\nab\r\n0\r\n\r\n"),
    "negative chunk size": chunks(b"-1\r\nab\r\n0\r\n\r\n"),
    "chunk size in words": chunks(b"zz\r\nab\r\n0\r\n\r\n"),
    "line feed after a chunk": chunks(b"2\r\nab\n0\r\n\r\n"),
    "no end of a chunk": chunks(b"2\r\nab0\r\n\r\n"),
    "chunk too long": chunks(b"2\r\nabc\r\n0\r\n\r\n"),
    "half a chunk extension too large": chunks(b"2;a=" + b"x" * 17000),
    "trailer without colon": chunks(b"2\r\nab\r\n0\r\nX y\r\n\r\n"),
    "too many headers": get(b"GET /x HTTP/1.1", *[b"X: y"] * 100),
    "too many trailers": chunks(b"2\r\nab\r\n0\r\n" + b"X: y\r\n" * 101 + b"\r\n"),
    "headers and trailers": post(CHUNKED, *[b"X: y"] * 60, body=b"0\r\n" + b"X: y\r\n" * 60 + b"\r\n"),
    "head too large": with_header(b"X: " + b"y" * 16384),
    "half a head too large": with_header(b"X: " + b"y" * 20000)[:-4],
    "junk after a request": get() + b"junk\r\n\r\n",
    "blank line after a request": get() + b"\r\n" + get(),
    "blank line after chunks": chunks(LAST) + b"\r\n" + get(),
}
"""Requests that both parsers refuse."""

ACCEPTED: Final = {
    "plain": get(),
    "query": get(b"GET /a%20b?c=%20&d?e HTTP/1.1"),
    "absolute": get(b"GET http://other/x?y HTTP/1.1"),
    "fragment": get(b"GET /x#y HTTP/1.1"),
    "any visible character": get(b'GET /"<>\\^`{|} HTTP/1.1'),
    "double slash": get(b"GET //x HTTP/1.1"),
    "asterisk": get(b"OPTIONS * HTTP/1.1"),
    "CONNECT": get(b"CONNECT a:443 HTTP/1.1"),
    "1.0": get(b"GET /x HTTP/1.0"),
    "1.0 without host": get(b"GET /x HTTP/1.0", host=b""),
    "1.0 is never kept alive": get(b"GET /x HTTP/1.0", b"Connection: keep-alive") * 2,
    "chunks in 1.0": get(b"POST /x HTTP/1.0", CHUNKED, body=b"2\r\nab\r\n0\r\n\r\n"),
    "empty host": get(host=b"Host:\r\n"),
    "odd host": get(host=b"Host: a b/c@\r\n"),
    "tab in a value": with_header(b"X: a\tb"),
    "no ASCII in a value": with_header(b"X: \xff\xe9"),
    "blanks around a value": with_header(b"X:  \t a b \t "),
    "empty value": with_header(b"X:"),
    "blank value": with_header(b"X:   "),
    "every character of a token": with_header(b"!#$%&'*+-.^_`|~09aZ: a"),
    "length of a GET": get(b"GET /x HTTP/1.1", b"Content-Length: 5", body=b"hello"),
    "length of a HEAD": get(b"HEAD /x HTTP/1.1", b"Content-Length: 5", body=b"hello"),
    "length": with_length(b"5") + get(),
    "length 0": with_length(b"0", b"") + get(),
    "length with a zero": with_length(b"05") + get(),
    "length in blanks": with_length(b"  5 ") + get(),
    "length with underscore in the name": post(b"Content_Length: 5"),
    "chunks": chunks(b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n") + get(),
    "chunks in upper case": post(b"Transfer-Encoding: CHUNKED", body=b"A\r\n0123456789\r\n0\r\n\r\n") + get(),
    "chunks with blank lines in them": chunks(b"8\r\na\r\n\r\n\r\nb\r\n5\r\n\r\n\r\n0\r\n0\r\n\r\n") + get(),
    "chunk sizes with zeros": chunks(b"0002\r\nab\r\n0000\r\n\r\n") + get(),
    "chunk extensions": chunks(b'2;a=b\r\nab\r\n1;c="d;e"\r\nx\r\n0;x\r\n\r\n') + get(),
    "trailers": chunks(b"2\r\nab\r\n0\r\nX: y\r\nHost: b\r\nAuthorization: z\r\n\r\n") + get(),
    "upgrade in trailers": chunks(b"2\r\nab\r\n0\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n") + get(),
    "99 headers": get(b"GET /x HTTP/1.1", *[b"X: y"] * 99),
    "large head": with_header(b"X: " + b"y" * (16384 - 60)),
    "upgrade": get(b"GET /x HTTP/1.1", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c") + get(),
    "upgrade and length": post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 5", body=b"hello") + get(),
    "upgrade and chunks": post(b"Connection: Upgrade", b"Upgrade: h2c", CHUNKED, body=b"2\r\nab\r\n" + LAST) + get(),
    "upgrade without Connection": get(b"GET /x HTTP/1.1", b"Upgrade: h2c") + get(),
    "web socket": get(b"GET /x HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket") + get(),
    "close": get(b"GET /x HTTP/1.1", b"Connection: CLOSE") + get(),
    "close among others": get(b"GET /x HTTP/1.1", b"Connection: keep-alive, close") + get(),
    "close in another line": get(b"GET /x HTTP/1.1", b"Connection: keep-alive", b"Connection: close") + get(),
    "closed is not close": get(b"GET /x HTTP/1.1", b"Connection: closed") + get(),
    "pipelining": get() * 3,
    "pipelining with bodies": (with_length(b"5") + chunks(b"2\r\nab\r\n0\r\n\r\n")) * 2 + get(),
    "expectation": post(b"Expect: 100-Continue", b"Content-Length: 5", body=b"hello"),
    "another expectation": post(b"Expect: x", b"Content-Length: 5", body=b"hello"),
}
"""Requests that both parsers understand, and in the same way."""

STRICTER: Final = {
    "another method": get(b"FOO /x HTTP/1.1"),
    "method in lower case": get(b"get /x HTTP/1.1"),
    "target without slash": get(b"GET x HTTP/1.1"),
    "version 0.9": get(b"GET /x HTTP/0.9"),
    "version 1.2": get(b"GET /x HTTP/1.2"),
    "version 2.0": get(b"GET /x HTTP/2.0"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "line feeds": b"GET /x HTTP/1.1\nHost: a\n\n",
    "line feed after a header": b"GET /x HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "line feed at the end": b"GET /x HTTP/1.1\r\nHost: a\r\n\n",
    "fold": with_header(b"X: a\r\n b"),
    "folded coding": post(b"Transfer-Encoding:\r\n chunked", body=LAST),
    "control in a value": with_header(b"X: a\x01b"),
    "delete in a value": with_header(b"X: a\x7fb"),
    "length twice": with_length(b"5, 5"),
    "two equal lengths": post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
    "coding in tabs": post(b"Transfer-Encoding:\tchunked\t", body=LAST),
    "empty chunk extension": chunks(b"2;\r\nab\r\n0\r\n\r\n"),
    "chunk extension too large": chunks(b"2;a=" + b"x" * 16384 + b"\r\nab\r\n0\r\n\r\n"),
    "later chunk extension too large": chunks(b"2\r\nab\r\n2;a=" + b"x" * 16384 + b"\r\nab\r\n0\r\n\r\n"),
    "control in a chunk extension": chunks(b"2;a\x00\r\nab\r\n0\r\n\r\n"),
    "blank after a chunk size": chunks(b"2 \r\nab\r\n0\r\n\r\n"),
    "line feed after the last chunk": chunks(b"2\r\nab\r\n0\r\n\n"),
    "length in trailers": chunks(b"2\r\nab\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "coding in trailers": chunks(b"2\r\nab\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "fold in trailers": chunks(b"2\r\nab\r\n0\r\nX: y\r\n z\r\n\r\n"),
    "line feed in trailers": chunks(b"2\r\nab\r\n0\r\nX: y\n\r\n"),
}
"""Requests that httptools refuses and h11 does not."""


def short(kinds: Mapping[str, bytes], piece_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield those that arrive within one turn of the event loop."""
    for name, data in kinds.items():
        if not piece_bytes or len(data) < 200:
            yield name, data


def run(parser: str, data: bytes, piece_bytes: int = 0) -> Exchange:
    with asyncio.Runner(**BACKENDS[parser]) as runner:
        return runner.run(exchange(parser, data, piece_bytes))


@pytest.mark.parametrize("piece_bytes", [0, 1])
def test_malformed_requests_are_refused_however_they_arrive(piece_bytes: int) -> None:
    """The application gets none of them as a whole; it may have begun one whose head is sound."""
    for parser, kinds in (("httptools", REFUSED | STRICTER), ("h11", REFUSED)):
        found = {name: run(parser, data, piece_bytes) for name, data in short(kinds, piece_bytes)}
        assert [name for name, one in found.items() if not one.is_refused] == [], parser
        assert not [name for name, one in found.items() if one.requests and "after" not in name], parser


@pytest.mark.parametrize("piece_bytes", [0, 1])
def test_both_parsers_understand_the_same(piece_bytes: int) -> None:
    for name, data in short(ACCEPTED, piece_bytes):
        fast, portable = (run(parser, data, piece_bytes) for parser in BACKENDS)
        assert fast.requests, name
        assert fast.requests == portable.requests, name
        assert not fast.is_refused, name


def test_trailers_do_not_reach_the_application() -> None:
    for parser in BACKENDS:
        seen = run(parser, ACCEPTED["trailers"]).requests[0]
        assert seen.headers == ((b"host", b"a"), (b"transfer-encoding", b"chunked")), parser


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_httptools_accepts_nothing_that_h11_reads_otherwise(data: Any) -> None:
    """Of requests with some bytes changed, cut out or put in; h11 may accept more."""
    request = bytearray(data.draw(st.sampled_from(list((ACCEPTED | REFUSED).values()))))[:2000]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(request)))
        cut = data.draw(st.integers(0, 2))
        put = data.draw(st.sampled_from(PIECES))
        request[at : at + cut] = put
    fast, portable = (run(parser, bytes(request)) for parser in BACKENDS)
    assert fast.requests == portable.requests[: len(fast.requests)]


PIECES: Final = (
    *(bytes([code]) for code in b'\r\n\t\x00\x01\x0b ",:;?#+-0159aAfxX\x7f\x80\xff'),
    *(b"", b"\r\n", b"\n\r\n", b"\r\n\r\n", b"\r\n ", b"  ", b"0\r\n\r\n", b"GET /x HTTP/1.1\r\n", b"Host: b\r\n"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n"),
)
