"""Polls that are answered before the routes: from prepared bytes, or those of one point read.

Every front end polls every few seconds, so most requests are polls of a task whose response this process has ready.
The routes, middlewares and the server's bookkeeping for a request cost several times more than such a response. It is
the same, byte for byte, as the one the application would send; a request that is unusual in any way is left to that.

httptools connections ask `ReadyPolls.find` as soon as they have read the request, without a task for it. All other
polls come to `ReadyPollMiddleware`: on h11, and where the database has to be waited for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from prometheus_client import Counter
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.api.http.identity import RequestIds
from broker.api.http.responses import CachedResponse
from broker.api.native.task_cache import TaskCache
from broker.i18n import Language, language_of
from broker.logs import log
from storage.errors import StorageError
from storage.ids import NUMBER_DIGITS

Headers = Sequence[tuple[bytes, bytes]]

_PREFIX: Final = b"/api/task/"
_TARGET_BYTES: Final = len(_PREFIX) + len("task_") + NUMBER_DIGITS
_OPERATION: Final = "getTask"
_OWN_HEADERS: Final = {b"content-length", b"etag"}
"""Those that differ between the responses of a status."""
_STATUS_LINES: Final = {200: b"HTTP/1.1 200 OK", 304: b"HTTP/1.1 304 Not Modified"}
_OTHER_TAG: Final = re.compile(rb'(W/)?"[^",]*"')
_METHODS: Final = {"GET", "HEAD"}
_BODY_HEADERS: Final = {b"content-length", b"transfer-encoding", b"expect"}


class ReadyResponse(NamedTuple):
    """head: status line and headers, without the empty line after them."""

    head: bytes
    body: bytes

    async def send(self, send: Send) -> None:
        """Send it as an application does."""
        status_line, *lines = self.head.split(b"\r\n")
        headers = [tuple(line.split(b": ", 1)) for line in lines]
        status = int(status_line.split(b" ", 2)[1])
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class _Poll(NamedTuple):
    """What of a request its response depends on. tag: of If-None-Match."""

    task_id: str
    language: Language
    tag: bytes | None
    origin: bytes | None
    request_id: bytes | None


@dataclass(kw_only=True)
class ReadyPolls:
    """Finds ready responses of `GET /api/task/{id}`.

    requests: counts these like those that the application answers. origins: those of BROKER_CORS_ORIGINS. complete:
    takes a response and an origin; returns all headers that the application sends, but for the id of the request.
    """

    cache: TaskCache
    requests: Counter
    origins: frozenset[bytes]
    complete: Callable[[Response, bytes | None], Headers]
    _ids: RequestIds = field(default_factory=RequestIds)
    _counters: dict[int, Counter] = field(init=False)
    _heads: dict[tuple[int, bytes | None, bool], bytes] = field(default_factory=dict)
    """Status line and the headers that all polls share, by status, origin and whether the task has ended."""

    def __post_init__(self) -> None:
        self._counters = {status: self.requests.labels(_OPERATION, str(status)) for status in (200, 304)}

    def find(self, target: bytes, headers: Headers) -> ReadyResponse | None:
        """Return the response to a GET request without a body; None if the application must answer it."""
        poll = self._parse(target, headers)
        return self._answer(poll, self.cache.find_or_load(poll.task_id, poll.language)) if poll is not None else None

    async def find_current(self, target: bytes, headers: Headers) -> ReadyResponse | None:
        """Do the same where the database must be waited for; one point read at most."""
        poll = self._parse(target, headers)
        if poll is None:
            return None
        try:
            return self._answer(poll, await self.cache.find_current(poll.task_id, poll.language))
        except StorageError:
            return None  # the application answers, as it does for all such errors

    def _parse(self, target: bytes, headers: Headers) -> _Poll | None:
        if len(target) != _TARGET_BYTES or not target.startswith(_PREFIX) or log.is_enabled_for(logging.DEBUG):
            return None
        given = dict(headers)
        origin = given.get(b"origin") if self.origins else None
        if len(given) != len(headers) or (origin is not None and origin not in self.origins):
            return None
        language = _language(given.get(b"accept-language", b""))
        task_id = target[len(_PREFIX) :].decode("latin-1")
        return _Poll(task_id, language, given.get(b"if-none-match"), origin, given.get(b"x-request-id"))

    def _answer(self, poll: _Poll, response: CachedResponse | None) -> ReadyResponse | None:
        status = _status(response, poll.tag) if response is not None else None
        if response is None or status is None:
            return None
        self._counters[status].inc()
        head = self._head(response, status, poll.origin)
        tag, request_id = response.tag.encode(), self._ids.choose(poll.request_id)
        if status == 304:
            return ReadyResponse(b"%b\r\netag: %b\r\nx-request-id: %b" % (head, tag, request_id), b"")
        body = response.body
        own = head, tag, request_id, len(body)
        return ReadyResponse(b"%b\r\netag: %b\r\nx-request-id: %b\r\ncontent-length: %d" % own, body)

    def _head(self, response: CachedResponse, status: int, origin: bytes | None) -> bytes:
        key = status, origin, "retry-after" in response.fixed
        head = self._heads.get(key)
        if head is None:
            sent = response.full() if status == 200 else response.not_modified()
            lines = [b": ".join(line) for line in self.complete(sent, origin) if line[0] not in _OWN_HEADERS]
            head = self._heads[key] = b"\r\n".join([_STATUS_LINES[status], *lines])
        return head


class ReadyPollMiddleware:
    """Answers polls before the other middlewares and the routes.

    These are the polls that a server has not asked for or could not be answered at once: on Postgres, with h11.
    """

    def __init__(self, app: ASGIApp, polls: ReadyPolls) -> None:
        self._app = app
        self._polls = polls

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["method"] in _METHODS and not scope["query_string"]:
            return self._answer(scope, receive, send)
        return self._app(scope, receive, send)  # without a frame of ours: clients that wait hold theirs for long

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, ready = scope["headers"], None
        if not any(name in _BODY_HEADERS for name, _ in headers):
            ready = await self._polls.find_current(scope.get("raw_path", b""), headers)
        await (self._app(scope, receive, send) if ready is None else ready.send(send))


def _status(response: CachedResponse, offered: bytes | None) -> int | None:
    """Return 200, or 304 for a client that has this response; None for an If-None-Match that is not one plain tag."""
    if offered is None:
        return 200
    if offered.removeprefix(b"W/") == response.tag.encode():
        return 304
    return 200 if _OTHER_TAG.fullmatch(offered) else None


@lru_cache(maxsize=256)
def _language(header: bytes) -> Language:
    return language_of(header.decode("latin-1"))
