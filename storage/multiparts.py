"""Multipart uploads that were begun and not finished, on any S3: listed and aborted. Blocks: call it in a thread.

obstore has neither call. It aborts its own upload when something goes wrong, but a killed process cannot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit
from xml.etree import ElementTree

from storage.sigv4 import Key, quoted_path, quoted_query, signed_headers

ANSWER_BYTES: Final = 4 * 2**20
"""A page has at most 1000 uploads, of some hundred bytes each."""

NO_SUCH_CALL: Final = frozenset({405, 501})


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """An upload of which nothing is visible yet. begun_at: epoch, by the store's clock."""

    key: str
    id: str
    begun_at: float


class Refused(Exception):
    """The store said no: its HTTP status, and its own word for the reason if it gave one."""

    def __init__(self, status: int, code: str | None) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code


class NoAnswer(Exception):
    """Nobody answered, or not in the words of S3."""


class Multiparts:
    """The unfinished uploads of one bucket. Raises `Refused` and `NoAnswer`.

    endpoint: as `https://host:port`. seconds: how long one call may take.
    """

    def __init__(self, *, endpoint: str, bucket: str, region: str, key: Key, seconds: float) -> None:
        self._endpoint = urlsplit(endpoint)
        self._bucket = bucket
        self._region = region
        self._key = key
        self._seconds = seconds

    def pages(self, prefix: str) -> Iterator[list[Unfinished]]:
        """All that begin with `prefix`, some at a time; none where the store has no such call."""
        marker: dict[str, str] = {}
        while True:
            try:
                answer = _parsed(self._call("GET", "", {"uploads": "", "prefix": prefix, **marker}))
            except Refused as refused:
                if refused.status in NO_SUCH_CALL:
                    return
                raise
            yield [_unfinished(upload) for upload in answer.iterfind("{*}Upload")]
            if _text(answer, "IsTruncated") != "true":
                return
            seen, marker = (
                marker,
                {
                    "key-marker": _text(answer, "NextKeyMarker"),
                    "upload-id-marker": _text(answer, "NextUploadIdMarker"),
                },
            )
            if marker == seen:
                raise NoAnswer("the list of uploads does not end")

    def abort(self, upload: Unfinished) -> None:
        """Give its space back. That it is gone already is fine."""
        try:
            self._call("DELETE", f"/{upload.key}", {"uploadId": upload.id})
        except Refused as refused:
            if refused.status != 404:
                raise

    def _call(self, method: str, path: str, query: Mapping[str, str]) -> bytes:
        path = f"{self._endpoint.path.rstrip('/')}/{self._bucket}{path}"
        headers = signed_headers(
            self._key,
            method=method,
            host=self._endpoint.netloc,
            path=path,
            query=query,
            at=datetime.now(UTC),  # the store compares it with its own clock
            region=self._region,
        )
        connection = self._connection()
        try:
            connection.request(method, f"{quoted_path(path)}?{quoted_query(query)}", headers=headers)
            response = connection.getresponse()
            body = _body(response, time.monotonic() + self._seconds)
        except (OSError, HTTPException) as error:
            raise NoAnswer("no HTTP answer") from error
        finally:
            connection.close()
        if response.status >= 300:
            raise Refused(response.status, _code(body))
        return body

    def _connection(self) -> HTTPConnection:
        kind = HTTPSConnection if self._endpoint.scheme == "https" else HTTPConnection
        return kind(self._endpoint.hostname or "", self._endpoint.port, timeout=self._seconds)


def _body(response: HTTPResponse, deadline: float) -> bytes:
    body = bytearray()
    while piece := response.read1(65536):
        body += piece
        if len(body) > ANSWER_BYTES or time.monotonic() > deadline:
            raise NoAnswer("an answer without end")
    return bytes(body)


def _parsed(body: bytes) -> ElementTree.Element:
    """The answer as XML; without a document type, and so without entities that could grow or reach out."""
    try:
        text = body.decode()
        if "<!" in text:
            raise NoAnswer("a document type where none belongs")
        return ElementTree.fromstring(text)  # noqa: S314
    except (ValueError, ElementTree.ParseError) as error:
        raise NoAnswer("no XML") from error


def _code(body: bytes) -> str | None:
    try:
        return _text(_parsed(body), "Code") or None
    except NoAnswer:
        return None


def _unfinished(upload: ElementTree.Element) -> Unfinished:
    try:
        begun_at = datetime.fromisoformat(_text(upload, "Initiated")).timestamp()
    except ValueError as error:
        raise NoAnswer("no date") from error
    return Unfinished(key=_text(upload, "Key"), id=_text(upload, "UploadId"), begun_at=begun_at)


def _text(parent: ElementTree.Element, name: str) -> str:
    return parent.findtext(f"{{*}}{name}", "")
