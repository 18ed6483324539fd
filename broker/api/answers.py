"""Answers in the native dialect: JSON, the one error shape, and what HTTP wants beside it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.errors import Refusal
from broker.sentences import Language, Sentences, language_of

POLL_SECONDS: Final = "3"
"""When an unfinished task is worth another look, as `Retry-After` says it."""


GUARDS: Final = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""What every answer tells browsers, unless it has words of its own: that it is no page, whatever bytes it has."""


def to_json(document: Any) -> bytes:
    """UTF-8; what no text can hold is written as an escape rather than failing an answer."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def language(request: HTTPConnection) -> Language:
    return language_of(",".join(request.headers.getlist("accept-language")))


def answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """One JSON answer; nobody keeps it unless `headers` say so."""
    fixed = {"content-type": "application/json", "cache-control": "no-store"}
    return Response(to_json(document), status, headers={**fixed, **(headers or {})})


def refused(sentences: Sentences, refusal: Refusal, request: HTTPConnection, headers: Mapping[str, str]) -> Response:
    """The error shape, in the caller's language."""
    document: dict[str, Any] = {
        "success": False,
        "error": sentences.say(refusal.code, language(request), refusal.message),
        "code": refusal.code,
        "retryable": refusal.retryable,
    }
    if refusal.field is not None:
        document["field"] = refusal.field
    if len(refusal.details) > 1:
        document["details"] = [{"field": one.field, "message": one.message} for one in refusal.details]
    return answer(document, refusal.status, {**_headers_of(refusal), **headers})


def _headers_of(refusal: Refusal) -> dict[str, str]:
    headers = {}
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(refusal.retry_after)))
    return headers


def etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def matches(request: HTTPConnection, tag: str) -> bool:
    """Whether If-None-Match says that the caller has this already; weak and strong tags are the same to us."""
    offered = request.headers.getlist("if-none-match")
    if not offered:
        return False
    tags = {part.strip().removeprefix("W/") for header in offered for part in header.split(",")}
    return "*" in tags or tag in tags


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An answer that many will ask for: its bytes, its tag and its headers, ready to be sent again and again."""

    body: bytes
    tag: str
    full: Sequence[tuple[bytes, bytes]]
    short: Sequence[tuple[bytes, bytes]]

    @classmethod
    def of(cls, document: Any, *, ended: bool) -> Prepared:
        body = to_json(document)
        tag = etag(body)
        short = [
            (b"etag", tag.encode()),
            (b"cache-control", b"private, no-cache"),
            (b"vary", b"Accept-Language"),
        ]
        if not ended:
            short.append((b"retry-after", POLL_SECONDS.encode()))
        full = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *short,
        ]
        return cls(body=body, tag=tag, full=full, short=short)

    def to(self, request: HTTPConnection) -> Response:
        """All of it, or 304 for who has it already."""
        if matches(request, self.tag):
            return _Ready(304, b"", self.short)
        return _Ready(200, self.body, self.full)


class _Ready(Response):
    """A response whose headers need no more work."""

    def __init__(self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status_code = status
        self.body = body
        self.raw_headers = list(headers)  # a copy: middleware adds to it
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})
