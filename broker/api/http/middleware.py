"""ASGI middleware: the request log, security headers, and responses to unforeseen exceptions.

Plain ASGI on purpose: Starlette's BaseHTTPMiddleware costs most of the throughput of a poll.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from typing import Final

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from broker.api.http.endpoint import endpoint_of, owner_of
from broker.api.http.errors import ErrorRenderer, internal_error, unavailable
from broker.api.http.responses import SECURITY_HEADERS
from broker.logs import log, safe_exc_info
from broker.metrics import Metrics

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOGGER: Final = logging.getLogger("broker")


class RequestLogMiddleware:
    """Gives each request an id, counts it, and logs one line when it has ended.

    The id is taken from `X-Request-ID` or made; it is returned in the response and bound to every log line of the
    request. The line names the route, not the path or the query: they may hold keys, tokens, and ids that are secrets.
    With the owner of the sender, it says who has changed a user or made a key.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        header = (b"x-request-id", request_id.encode())
        status, began = 0, time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not any(name == header[0] for name, _ in message["headers"]):  # a dialect has its own meaning of it
                    message["headers"] = [*message["headers"], header]
            await send(message)

        with bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                self._record(scope, status, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log a request. status: 0 if no response was begun."""
        endpoint = endpoint_of(scope)
        operation = endpoint.operation_id if endpoint else "unmatched"
        self._metrics.requests.labels(operation, str(status)).inc()
        is_routine = endpoint is not None and endpoint.is_quiet and (200 <= status < 300 or status == 304)
        if is_routine and not _LOGGER.isEnabledFor(logging.DEBUG):
            return  # a structlog call that is filtered afterwards costs more than the rest of this middleware
        write = log.debug if is_routine else log.info
        write(
            "request",
            action="request",
            method=scope["method"],
            route=endpoint.path if endpoint else None,
            operation=operation,
            status=status,
            milliseconds=round(seconds * 1000, 1),
            owner=owner_of(scope),
        )


def _request_id(scope: Scope) -> str:
    """Return the id that a client or proxy gave, if it is one plain token, or a new one."""
    given = HTTPConnection(scope).headers.getlist("x-request-id")
    return given[0] if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) else secrets.token_hex(8)


class SecurityHeadersMiddleware:
    """Adds `SECURITY_HEADERS` to every response that does not set its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(one for one in SECURITY_HEADERS if one[0] not in present)]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class UnhandledErrorMiddleware:
    """Logs an unforeseen exception once, and answers without details.

    Starlette's own handling would have uvicorn log it again.
    """

    def __init__(self, app: ASGIApp, errors: ErrorRenderer) -> None:
        self._app = app
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except asyncio.CancelledError:  # the process is stopping, and the time to drain is over
            log.warning("a request was cut off", action="request_cut_off")
            answer = unavailable()
        except Exception as error:
            log.error("a request failed unexpectedly", action="request_failed", exc_info=safe_exc_info(error))
            answer = internal_error()
        else:
            return
        if not begun:
            await self._errors.render(HTTPConnection(scope), answer)(scope, receive, send)
