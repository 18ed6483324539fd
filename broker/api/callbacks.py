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
from broker.broker import Broker, Heard
from broker.clock import iso
from broker.errors import ApiError
from broker.showing import Absent, Moment, ResponseModel
from webhooks.inbound import MAX_BODY_BYTES, Callback, Judgement
from webhooks.proofs import Presence

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
    broker: Broker

    async def ping_webhook(self, request: Request) -> Response:
        """Confirm the address; to a nonce also that it is this broker that answers."""
        nonces = request.query_params.getlist("probe")
        shown = Presence(self.broker.tokens.secret).answer(nonces[0]) if len(nonces) == 1 else None
        ready = WebhookReady(status="ok", message=_READY, timestamp=iso(self.broker.clock.now()), probe=shown)
        return json_response(ready.to_document())

    async def receive_callback(self, request: Request) -> Response:
        """Receive a callback. Any content type is read as JSON; a compressed body is not inflated."""
        began = time.perf_counter()
        callback = Callback(
            provider=request.path_params.get("provider", "nano-banana"),
            query=dict(request.query_params),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await _read_bounded(request),
            trusted=caller_of(request).trusted,
            encoded=is_encoded(request),
        )
        heard = await self.broker.hear(callback)
        response = self._acknowledgement(request, heard.judgement)
        response.background = BackgroundTask(self._record_duration, heard, began)
        return response

    async def _record_duration(self, heard: Heard, began: float) -> None:
        """Record the time until the response was sent."""
        seconds = time.perf_counter() - began
        self.broker.metrics.callback_seconds.observe(seconds)
        await self.broker.acknowledged(heard, seconds)

    def _acknowledgement(self, request: Request, judgement: Judgement) -> Response:
        """An error is returned, not raised: raised, it would lose the background task."""
        if judgement.status not in _CODES:
            received = CallbackReceived(success=True, message=f"The callback was taken: {judgement.reason}.")
            return json_response(received.to_document(), judgement.status)
        error = ApiError(_CODES[judgement.status], f"The callback was not taken: {judgement.reason}.")
        self.broker.metrics.refusals.labels(error.code).inc()
        return error_response(self.broker.showing.sentences, error, request, {})


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
    """Return the endpoints of kie.ai's fixed path, and of the other providers."""
    kie = _endpoints(callbacks, "/api/webhook/nano-banana", (), "KieWebhook", "KieCallback", "kie.ai")
    others = _endpoints(
        callbacks, "/api/webhook/{provider}", (_PROVIDER,), "ProviderWebhook", "ProviderCallback", "a provider"
    )
    return [*kie, *others]


def _endpoints(
    callbacks: CallbackRoutes, path: str, parameters: tuple[Parameter, ...], webhook: str, callback: str, sender: str
) -> list[Endpoint]:
    common: dict[str, Any] = {"path": path, "access": "provider", "tag": "providers"}
    return [
        Endpoint(
            method="GET",
            handler=callbacks.ping_webhook,
            operation_id=f"ping{webhook}",
            summary=f"Check the callback address of {sender}",
            parameters=parameters,
            responses={200: json_success("the address is right", WebhookReady)},
            **common,
        ),
        Endpoint(
            method="POST",
            handler=callbacks.receive_callback,
            operation_id=f"receive{callback}",
            summary=f"Receive a callback of {sender}",
            description="A callback with the right token is accepted; any other at most makes the broker check with "
            "the provider. Any content type is read as JSON.",
            parameters=(*parameters, *_TOKEN),
            request=_BODY,
            responses={
                200: json_success("accepted, or known already", CallbackReceived),
                202: json_success("not proven: the broker checks with the provider", CallbackReceived),
            },
            errors=("invalid_request", "unauthorized", "task_not_found", "payload_too_large"),
            **common,
        ),
    ]
