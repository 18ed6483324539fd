"""Callbacks of providers: read a bounded body, verify and store it, acknowledge. The work comes later."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final, Literal

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import TEXT, Endpoint, Parameter, caller_of, json_success
from broker.api.http.request_body import is_encoded
from broker.api.http.responses import error_response, json_response
from broker.callbacks.receive import CallbackReceiver
from broker.clock import Clock, iso
from broker.errors import ApiError
from broker.i18n import Messages
from broker.metrics import Metrics
from broker.presenter import Absent, Moment, ResponseModel
from webhooks.tokens import ChallengeResponse
from webhooks.verification import MAX_BODY_BYTES, Decision, IncomingCallback

_CODES: Final = {400: "invalid_request", 401: "unauthorized", 404: "task_not_found", 413: "payload_too_large"}
_READY: Final = "Nano Banana webhook endpoint is ready"


class WebhookReady(ResponseModel):
    status: Literal["ok"]
    message: str
    timestamp: Moment
    probe: str | Absent = None


class CallbackReceived(ResponseModel):
    success: Literal[True]
    message: str


@dataclass(frozen=True, kw_only=True)
class CallbackRoutes:
    clock: Clock
    receiver: CallbackReceiver
    challenge: ChallengeResponse
    metrics: Metrics
    messages: Messages

    async def ping_webhook(self, request: Request) -> Response:
        """Confirm the address; to a nonce also that it is this broker that answers."""
        nonces = request.query_params.getlist("probe")
        shown = self.challenge.answer(nonces[0]) if len(nonces) == 1 else None
        ready = WebhookReady(status="ok", message=_READY, timestamp=iso(self.clock.now()), probe=shown)
        return json_response(ready.to_document())

    async def receive_callback(self, request: Request) -> Response:
        """Receive a callback. Any content type is read as JSON; a compressed body is not inflated."""
        began = time.perf_counter()
        callback = IncomingCallback(
            provider=request.path_params.get("provider", "nano-banana"),
            query=dict(request.query_params),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await _read_bounded(request),
            trusted=caller_of(request).trusted,
            encoded=is_encoded(request),
        )
        response = self._acknowledgement(request, await self.receiver.receive(callback))
        response.background = BackgroundTask(self._record_duration, began)
        return response

    async def _record_duration(self, began: float) -> None:
        """Record the time from the first byte of the request to the end of the response."""
        self.metrics.callback_ack_seconds.observe(time.perf_counter() - began)

    def _acknowledgement(self, request: Request, judgement: Decision) -> Response:
        """An error is returned, not raised: raised, it would lose the background task."""
        if judgement.status not in _CODES:
            received = CallbackReceived(success=True, message=f"The callback was taken: {judgement.reason}.")
            return json_response(received.to_document(), judgement.status)
        error = ApiError(_CODES[judgement.status], f"The callback was not taken: {judgement.reason}.")
        self.metrics.request_errors.labels(error.code).inc()
        return error_response(self.messages, request, error, {})


async def _read_bounded(request: Request) -> bytes:
    """Return the body, or one byte more than the limit: a longer one is rejected by its length alone."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body[: MAX_BODY_BYTES + 1])


# -- endpoints

_PROVIDER: Final = Parameter(name="provider", where="path", text="name of the provider", schema=TEXT)
_TOKEN: Final = tuple(
    Parameter(name=name, where="query", text="from the address that the provider was given", schema=TEXT)
    for name in ("task", "attempt", "token")
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


def callback_endpoints(callbacks: CallbackRoutes) -> list[Endpoint]:
    """Return the endpoints of kie.ai's fixed path, and of the path of the other providers."""
    ping: dict[str, Any] = {
        "method": "GET",
        "handler": callbacks.ping_webhook,
        "access": "provider",
        "tag": "providers",
        "responses": {200: json_success("the address is right", WebhookReady)},
    }
    receive: dict[str, Any] = {
        "method": "POST",
        "handler": callbacks.receive_callback,
        "access": "provider",
        "tag": "providers",
        "description": "A callback with the right token is accepted; any other at most makes the broker check with "
        "the provider. Any content type is read as JSON.",
        "request": _BODY,
        "responses": {
            200: json_success("accepted, or known already", CallbackReceived),
            202: json_success("not proven: the broker checks with the provider", CallbackReceived),
        },
        "errors": ("invalid_request", "unauthorized", "task_not_found", "payload_too_large"),
    }
    kie, others = "/api/webhook/nano-banana", "/api/webhook/{provider}"
    return [
        Endpoint(path=kie, operation_id="pingKieWebhook", summary="Check the callback address of kie.ai", **ping),
        Endpoint(
            path=kie,
            operation_id="receiveKieCallback",
            summary="Receive a callback of kie.ai",
            parameters=_TOKEN,
            **receive,
        ),
        Endpoint(
            path=others,
            operation_id="pingProviderWebhook",
            summary="Check the callback address of a provider",
            parameters=(_PROVIDER,),
            **ping,
        ),
        Endpoint(
            path=others,
            operation_id="receiveProviderCallback",
            summary="Receive a callback of a provider",
            parameters=(_PROVIDER, *_TOKEN),
            **receive,
        ),
    ]
