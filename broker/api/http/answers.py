"""Whether the answer to an order was sent to its end: one that was cut off is sent again, not ordered again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import anyio
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.api.http.connection import connection_of
from broker.ordering.answers import OpenAnswer, OpenAnswers

_ANSWER: Final = "broker.answer"


@dataclass(kw_only=True)
class TrackedAnswer:
    """The answer to a request that has ordered something."""

    answers: OpenAnswers
    answer: OpenAnswer | None
    """None for a request whose Idempotency-Key identifies it."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the response, whatever it is; with names in lower case."""
    is_final: bool = True
    """False if it does not have the result: then an equal request gets the same order again."""


def mark_unfinished(request: HTTPConnection) -> None:
    """Record that the answer to this request does not have the result: an equal request waits for it again."""
    if tracked := tracked_answer(request.scope):
        tracked.is_final = False


def allow_retry(request: HTTPConnection) -> None:
    """Let the SDK of this client repeat its request by itself: it joins its own order."""
    if tracked := tracked_answer(request.scope):
        tracked.headers = {**tracked.headers, "x-should-retry": "true"}


def track_answer(scope: Scope, answer: TrackedAnswer) -> None:
    """Let the route record the end of the answer to this request."""
    scope[_ANSWER] = answer


def tracked_answer(scope: Scope) -> TrackedAnswer | None:
    found: TrackedAnswer | None = scope.get(_ANSWER)
    return found


def is_recorded(scope: Scope) -> bool:
    """Return whether `send_tracked` has something to do for an answer that is about to be sent."""
    tracked: TrackedAnswer | None = scope.get(_ANSWER)
    return tracked is not None and (tracked.answer is not None or bool(tracked.headers))


async def send_tracked(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an application, and record the end of its answer if it asked for that."""
    connection, is_sent = connection_of(scope), False

    async def watched_send(message: Message) -> None:
        nonlocal is_sent
        tracked = tracked_answer(scope)
        if tracked is not None and message["type"] == "http.response.start":
            added = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in tracked.headers.items()]
            names = {name for name, _ in added}
            message["headers"] = [*(one for one in message["headers"] if one[0] not in names), *added]
        await send(message)
        if _is_last(message):
            is_sent = connection is None or not connection.is_lost

    try:
        await app(scope, receive, watched_send)
    finally:
        tracked = tracked_answer(scope)
        if tracked is not None and tracked.answer is not None:
            with anyio.CancelScope(shield=True):
                if is_sent and tracked.is_final:
                    tracked.answers.confirm(tracked.answer, connection.wait_received if connection else None)
                else:
                    await tracked.answers.leave(tracked.answer)


def _is_last(message: Message) -> bool:
    is_body = message["type"] == "http.response.body" or "body" in message  # `WHOLE_RESPONSE`
    return is_body and not message.get("more_body", False)
