"""ASGI middleware: request ids, security headers, the request log, and responses to unforeseen exceptions.

Plain ASGI on purpose: Starlette's BaseHTTPMiddleware costs most of the throughput of a poll.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Final

from prometheus_client import Counter
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.api.http.answers import is_recorded, mark_unfinished, send_tracked
from broker.api.http.endpoint import EndpointRouter, endpoint_of, owner_of
from broker.api.http.errors import ErrorRenderer, internal_error, unavailable
from broker.api.http.identity import RequestIds, header_values
from broker.api.http.responses import SECURITY_HEADERS
from broker.errors import ApiError
from broker.logs import LogEvent, RequestLine, log, request_line, safe_exc_info
from broker.metrics import Metrics

_ID_HEADER: Final = b"x-request-id"
_STATUS: Final = "broker.status"
"""Of the response; absent until that begins."""


class RequestMiddleware:
    """Gives each request an id and its response the security headers; counts it, and logs one line at its end.

    The id is taken from `X-Request-ID` or made; it is returned in the response, unless that has its own meaning of the
    header, and bound to every log line of the request. The line names the route, not the path or the query: they may
    hold keys, tokens, and ids that are secrets. With the owner of the sender, it says who has changed a user or made a
    key. It is also the line of an order, unless the response waits for the images.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._requests = metrics.requests
        self._counters: dict[tuple[str, int], Counter] = {}
        self._ids = RequestIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = header_values(scope, "x-request-id")
        request_id = self._ids.choose(given[0].encode("latin-1") if len(given) == 1 else None)
        began = time.perf_counter()

        def send_completed(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                scope[_STATUS] = message["status"]
                message["headers"] = complete_headers(message["headers"], (_ID_HEADER, request_id))
            return send(message)

        line = RequestLine(request_id.decode())
        named = request_line.set(line)
        try:
            await self._app(scope, receive, send_completed)
        finally:
            line.is_open = False
            self._record(scope, scope.get(_STATUS, 0), time.perf_counter() - began, line.facts)
            request_line.reset(named)

    def _record(self, scope: Scope, status: int, seconds: float, facts: LogEvent) -> None:
        """Count and log a request. status: 0 if no response was begun. facts: what it has changed."""
        endpoint = endpoint_of(scope)
        operation = endpoint.operation_id if endpoint else "unmatched"
        counter = self._counters.get((operation, status))
        if counter is None:
            counter = self._counters[operation, status] = self._requests.labels(operation, str(status))
        counter.inc()
        is_routine = endpoint is not None and endpoint.is_quiet and (200 <= status < 300 or status == 304)
        if not log.is_enabled_for(logging.DEBUG if is_routine else logging.INFO):
            return
        fields: LogEvent = {
            "action": "request",
            "method": scope["method"],
            "route": endpoint.path if endpoint else None,
            "operation": operation,
            "status": status,
            "milliseconds": round(seconds * 10_000) / 10,
            "owner": owner_of(scope),
            **facts,
        }
        log.write("debug" if is_routine else "info", "request", fields)


def complete_headers(headers: Iterable[tuple[bytes, bytes]], *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Return the headers with `SECURITY_HEADERS` and `more`, except those that the response sets itself."""
    own = [*headers]
    present = dict(own)
    return [*own, *[header for header in (*SECURITY_HEADERS, *more) if header[0] not in present]]


class EndpointApp:
    """Answers requests with the responses of the endpoints, and records sent answers.

    What is raised on the way to a response is answered in the dialect of the request; an unforeseen exception is logged
    once, and answered without details. Starlette's own layers for all of that, two around the router and one in each
    route, cost more than the routing.
    """

    def __init__(self, router: EndpointRouter, errors: ErrorRenderer) -> None:
        self._router = router
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await self._router.find_route(scope).respond(request)
        except (Exception, asyncio.CancelledError) as error:
            response = self._error_response(request, error)
        if is_recorded(scope):
            await send_tracked(partial(self._send, response), scope, receive, send)
        else:
            await self._send(response, scope, receive, send)

    async def _send(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await response(scope, receive, send)
        except (Exception, asyncio.CancelledError) as error:
            request = HTTPConnection(scope)
            if _STATUS in scope:
                self._note_unforeseen(request, error)
                return
            response = self._error_response(request, error)
        else:
            return
        await response(scope, receive, send)

    def _error_response(self, request: HTTPConnection, error: BaseException) -> Response:
        if isinstance(error, Exception) and (response := self._errors.response_to(request, error)) is not None:
            error.__traceback__ = None  # one that is raised again and again would keep all of them
            return response
        return self._errors.render(request, self._note_unforeseen(request, error))

    def _note_unforeseen(self, request: HTTPConnection, error: BaseException) -> ApiError:
        """Log why a request has no response, or only a part; return the error that says so."""
        mark_unfinished(request)
        if isinstance(error, asyncio.CancelledError):  # the process is stopping, and the time to drain is over
            log.warning("a request was cut off", action="request_cut_off")
            return unavailable()
        log.error("a request failed unexpectedly", action="request_failed", exc_info=safe_exc_info(error))
        return internal_error()
