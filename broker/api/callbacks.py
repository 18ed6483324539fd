"""Callbacks of providers: read a bounded body, verify and store it, acknowledge. The work comes later."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Final, Literal
from urllib.parse import parse_qsl

from prometheus_client import Histogram
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from broker.api.http.endpoint import Endpoint, Parameter, is_sent_by_operator, json_success
from broker.api.http.identity import header_table
from broker.api.http.request_body import is_encoded
from broker.api.http.responses import error_response, json_response, json_text_response, to_json_text
from broker.callbacks.probe import READY_MESSAGE
from broker.callbacks.receive import CallbackReceiver
from broker.clock import Clock, iso
from broker.errors import ApiError
from broker.i18n import Messages
from broker.metrics import Metrics
from broker.presenter import Absent, Moment, ResponseModel
from webhooks.tokens import ChallengeResponse
from webhooks.verification import MAX_BODY_BYTES, Decision, IncomingCallback

_CODES: Final = {400: "invalid_request", 401: "unauthorized", 404: "task_not_found", 413: "payload_too_large"}

GENERAL_PATH: Final = "/api/webhook/{provider}"
"""Callback path of providers that need no other."""


class WebhookReady(ResponseModel):
    status: Literal["ok"]
    message: str
    timestamp: Moment
    probe: str | Absent = None


class CallbackReceived(ResponseModel):
    success: Literal[True]
    message: str


_PROVIDER: Final = Parameter("provider", "path", "name of the provider")
_TOKEN: Final = tuple(
    Parameter(name, "query", "from the address that the provider was given") for name in ("task", "attempt", "token")
)
_BODY: Final = {
    "application/json": {
        "examples": [
            {"task_id": "task_…", "status": "completed", "output": {"image_url": "https://example.com/a.png"}},
            {"code": 200, "data": {"taskId": "…", "state": "success", "resultJson": '{"resultUrls":["https://…"]}'}},
        ]
    }
}
"""Each provider has a format of its own, so nothing is required."""


@dataclass(frozen=True, kw_only=True)
class CallbackRoutes:
    paths: Mapping[str, str]
    """Callback path by provider."""
    clock: Clock
    receiver: CallbackReceiver
    challenge: ChallengeResponse
    metrics: Metrics
    messages: Messages

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of providers with a path of their own, and those of the general path."""
        own = {name: path for name, path in self.paths.items() if path != GENERAL_PATH.format(provider=name)}
        return [
            *(endpoint for name, path in own.items() for endpoint in self._endpoints_of(path, name)),
            *self._endpoints_of(GENERAL_PATH, "provider", _PROVIDER),
        ]

    def _endpoints_of(self, path: str, name: str, *parameters: Parameter) -> tuple[Endpoint, Endpoint]:
        endpoint = partial(Endpoint, access="provider", tag="providers")
        ping = endpoint(
            "GET",
            path,
            self.ping_webhook,
            operation_id=f"ping{name.capitalize()}Webhook",
            parameters=parameters,
            responses={200: json_success("the address is right", WebhookReady)},
        )
        receive = endpoint(
            "POST",
            path,
            self.receive_callback,
            operation_id=f"receive{name.capitalize()}Callback",
            parameters=(*parameters, *_TOKEN),
            request=_BODY,
            responses={
                200: json_success("accepted, or known already", CallbackReceived),
                202: json_success("not proven: the broker checks with the provider", CallbackReceived),
            },
            errors=tuple(_CODES.values()),
        )
        return ping, receive

    async def ping_webhook(self, request: Request) -> Response:
        """Check the callback address of a provider."""
        nonces = request.query_params.getlist("probe")
        response = self.challenge.answer(nonces[0]) if len(nonces) == 1 else None  # proves that it is this broker
        ready = WebhookReady(status="ok", message=READY_MESSAGE, timestamp=iso(self.clock.now()), probe=response)
        return json_response(ready.to_document())

    async def receive_callback(self, request: Request) -> Response:
        """Receive a callback of a provider.

        A callback with the right token is accepted; any other at most makes the broker check with the provider. Any
        content type is read as JSON.
        """
        began = time.perf_counter()
        callback = IncomingCallback(
            provider=request.scope["path"].rsplit("/", 1)[-1],
            query=read_query(request.scope["query_string"]),
            headers={name: values[-1] for name, values in header_table(request.scope).items()},
            body=await _read_bounded(request),
            trusted=is_sent_by_operator(request),
            encoded=is_encoded(request),
        )
        response = self._acknowledgement(request, await self.receiver.receive(callback))
        response.background = _DurationTask(self.metrics.callback_ack_seconds, began)
        return response

    def _acknowledgement(self, request: Request, decision: Decision) -> Response:
        """An error is returned, not raised: raised, it would lose the background task."""
        if decision.status not in _CODES:
            return json_text_response(_received_text(decision.reason), decision.status)
        error = ApiError(_CODES[decision.status], f"The callback was rejected: {decision.reason}.")
        self.metrics.request_errors.labels(error.code).inc()
        return error_response(self.messages, request, error, {})


@cache  # there are about ten reasons
def _received_text(reason: str) -> str:
    received = CallbackReceived(success=True, message=f"The callback was received: {reason}.")
    return to_json_text(received.to_document())


class _DurationTask(BackgroundTask):
    """Records the time from the first byte of a request to the end of its response.

    Starlette's own looks at the function of each task, which takes longer than this one.
    """

    def __init__(self, seconds: Histogram, began: float) -> None:
        """began: by the performance counter."""
        self._seconds = seconds
        self._began = began

    async def __call__(self) -> None:
        self._seconds.observe(time.perf_counter() - self._began)


def read_query(query: bytes) -> Mapping[str, str]:
    """Return the parameters, the last one of a name; a plain query in a tenth of the time that a general one takes."""
    text = query.decode("latin-1")
    if "%" in text or "+" in text:
        return dict(parse_qsl(text, keep_blank_values=True))
    found: dict[str, str] = {}
    for pair in text.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            found[name] = value
    return found


async def _read_bounded(request: Request) -> bytes:
    """Return the body, or one byte more than the limit: a longer one is rejected by its length alone."""
    body, has_more = bytearray(), True
    while has_more and len(body) <= MAX_BODY_BYTES:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
    return bytes(body[: MAX_BODY_BYTES + 1])
