"""The smallest HTTP client that will do: one request, one line, no redirects, 15 seconds."""

from __future__ import annotations

import asyncio
import io
from http.client import HTTPException, HTTPResponse
from typing import IO, Any, cast
from urllib.parse import SplitResult, quote, urlsplit

TIMEOUT = 15.0
LIMIT = 128 * 1024 * 1024


async def post(url: str, headers: dict[str, str], body: bytes) -> int:
    """Sends the body and returns the HTTP status; OSError when there was no answer."""
    return (await _exchange("POST", url, headers, body)).status


async def fetch(url: str) -> bytes:
    """The body behind a URL; OSError when there is none or the answer is not a 200."""
    answer = await _exchange("GET", url, {}, b"")
    if answer.status != 200:
        raise ConnectionError(f"HTTP {answer.status}")
    return answer.read()


async def _exchange(method: str, url: str, headers: dict[str, str], body: bytes) -> HTTPResponse:
    try:
        request = _request(method, urlsplit(url), headers, body)
        async with asyncio.timeout(TIMEOUT):
            return _parsed(method, await _talk(urlsplit(url), request))
    except (HTTPException, ValueError) as error:
        raise ConnectionError(f"no sensible answer: {error}") from error


def _request(method: str, url: SplitResult, headers: dict[str, str], body: bytes) -> bytes:
    target = quote(f"{url.path or '/'}{'?' * bool(url.query)}{url.query}", safe="/?&=%:+,;@~!$'()*")
    lines = {"Host": url.netloc.rpartition("@")[2], "Connection": "close", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


async def _talk(url: SplitResult, request: bytes) -> bytes:
    secure = url.scheme == "https"
    if not url.hostname or url.scheme not in {"http", "https"}:
        raise ValueError("not an http address")
    reader, writer = await asyncio.open_connection(
        url.hostname, url.port or (443 if secure else 80), ssl=secure or None
    )
    try:
        writer.write(request)
        await writer.drain()
        return await _all(reader)
    finally:
        writer.close()


async def _all(reader: asyncio.StreamReader) -> bytes:
    whole = bytearray()
    while chunk := await reader.read(1 << 16):
        whole += chunk
        if len(whole) > LIMIT:
            raise ValueError("the answer is too large")
    return bytes(whole)


def _parsed(method: str, raw: bytes) -> HTTPResponse:
    response = HTTPResponse(cast(Any, _Tape(raw)), method=method)
    response.begin()
    return response


class _Tape:
    """What was heard, in the shape `HTTPResponse` wants a socket in."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> IO[bytes]:
        return io.BytesIO(self._raw)
