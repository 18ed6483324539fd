"""Endpoints of fal's API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.fal.errors import REQUEST_ID, request_id_of
from broker.api.dialects.fal.orders import PRIORITY, WEBHOOK
from broker.api.dialects.fal.queue import FalQueue
from broker.api.dialects.fal.runs import FalRuns
from broker.api.dialects.fal.schemas import (
    FalCanceled,
    FalError,
    FalInput,
    FalJwks,
    FalStatus,
    FalTicket,
    FalUploadRequest,
    FalUploadUrls,
)
from broker.api.dialects.fal.targets import TARGET_URL, FalTarget, Kind, read_target
from broker.api.dialects.fal.uploads import FalUploads
from broker.api.http.endpoint import Endpoint, Parameter, SuccessResponse, json_success
from broker.api.http.responses import json_response
from broker.notifications.formats.fal import FalOutput

JWKS_SECONDS: Final = 3600
"""How long a receiver of webhooks may keep our keys."""

_TAG: Final = "fal"
_REQUEST_PATH: Final = "/fal/{owner}/{alias}/requests/{id}"
_APP: Final = (Parameter("owner", "path", "fal-ai or google"), Parameter("alias", "path", "a model like nano-banana"))
_REQUEST: Final = (*_APP, Parameter("id", "path", "the request_id"))
_LOGS: Final = Parameter("logs", "query", "1: with a line per step")
_ORDER: Final = (
    Parameter(WEBHOOK, "query", "address that is called at the end"),
    Parameter(PRIORITY, "header", "low: after the caller's own other orders"),
)
_TARGET: Final = Parameter(TARGET_URL, "header", "the address at fal that the request is meant for")

_EVENTS: Final = {"text/event-stream": {"type": "object", "properties": {"data": {"type": "string"}}}}
_OUTPUT: Final = json_success("the images", FalOutput)
_TICKET: Final = json_success("the order is durable", FalTicket)
_RUNNING: Final = json_success("the request waits or runs", FalStatus)
_ENDED: Final = json_success("the request has ended", FalStatus)
_CANCELED: Final = json_success("the request is canceled", FalCanceled)
_TOO_LATE: Final = json_success("Bad Request: the request has ended", FalCanceled)
_ORDER_RESPONSES: Final = {
    403: json_success("Forbidden: the budget is used up", FalError),
    422: json_success("Unprocessable Content: the input is wrong or its content is refused", FalError),
}
_AWAY: Final = {429: json_success("Too Many Requests: later; also while the broker stops or has no database", FalError)}
_ORDER_ERRORS: Final = ("not_found", "payload_too_large", "task_expired", "rate_limited")
_RESULT_RESPONSES: Final = {
    **_AWAY,
    400: json_success("Bad Request: the request has not ended yet", FalError),
    422: json_success("Unprocessable Content: the content of the request is refused", FalError),
    499: json_success("the request is canceled", FalError),
}
_REQUEST_ERRORS: Final = ("task_not_found", "task_expired")
_ANYTHING: Final = SuccessResponse(
    text="what the function behind the address answers", content={"application/json": {}, "text/event-stream": {}}
)
_NO_TARGET: Final = json_success("Bad Request: not an address of fal that the broker serves", FalError)


@dataclass(frozen=True, kw_only=True)
class FalEndpoints:
    """The endpoints, and what they call."""

    queue: FalQueue
    runs: FalRuns
    uploads: FalUploads
    read_keys: Callable[[], FalJwks]

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint list of the dialect, in the order of matching."""
        return [
            self._keys_endpoint(),
            *self._proxy_endpoints(),
            *self._upload_endpoints(),
            *self._order_endpoints(),
            *self._request_endpoints(),
        ]

    def _keys_endpoint(self) -> Endpoint:
        return Endpoint(
            "GET",
            "/fal/.well-known/jwks.json",
            self.get_webhook_keys,
            operation_id="falGetWebhookKeys",
            access="public",
            tag=_TAG,
            responses={200: json_success("the keys that sign webhooks", FalJwks)},
        )

    def _proxy_endpoints(self) -> list[Endpoint]:
        endpoint = partial(
            Endpoint,
            path="/fal/proxy",
            handler=self.forward_request,
            access="caller",
            tag=_TAG,
            parameters=(_TARGET,),
            is_held=True,
        )
        bad = {400: _NO_TARGET}
        return [
            endpoint(
                method="GET",
                operation_id="falProxyGet",
                responses={200: _ANYTHING, 202: _ANYTHING, **_RESULT_RESPONSES, **bad},
                errors=_REQUEST_ERRORS,
                is_quiet=True,
            ),
            endpoint(
                method="POST",
                operation_id="falProxyPost",
                request={"application/json": {"type": "object"}},
                responses={200: _ANYTHING, **_ORDER_RESPONSES, **bad},
                errors=_ORDER_ERRORS,
            ),
            endpoint(
                method="PUT",
                operation_id="falProxyPut",
                responses={202: _ANYTHING, **bad},
                errors=_REQUEST_ERRORS,
            ),
        ]

    def _upload_endpoints(self) -> list[Endpoint]:
        endpoint = partial(Endpoint, tag=_TAG)
        invalid = {422: json_success("Unprocessable Content: it is not a usable image", FalError)}
        return [
            endpoint(
                "POST",
                "/fal/storage/upload/initiate",
                self.initiate_upload,
                operation_id="falInitiateUpload",
                access="caller",
                request={"application/json": FalUploadRequest},
                responses={200: json_success("where the bytes are sent", FalUploadUrls), **invalid},
                errors=("payload_too_large",),
            ),
            endpoint(
                "PUT",
                "/fal/storage/uploads/{id}/file",
                self.store_upload,
                operation_id="falStoreUpload",
                access="public",
                parameters=(Parameter("id", "path", "the secret of the upload"),),
                request={"application/octet-stream": {"type": "string", "format": "binary"}},
                responses={200: json_success("the file is stored", {"type": "object"}), **invalid},
                errors=("not_found", "payload_too_large", "conflict"),
            ),
        ]

    def _order_endpoints(self) -> list[Endpoint]:
        endpoint = partial(Endpoint, access="caller", tag=_TAG, request={"application/json": FalInput})
        submit = partial(endpoint, responses={200: _TICKET} | _ORDER_RESPONSES, errors=_ORDER_ERRORS)
        return [
            endpoint(
                "POST",
                "/fal/run/{app:path}",
                self.run_app,
                operation_id="falRun",
                parameters=(Parameter("app", "path", "like fal-ai/nano-banana, with /edit, with /stream"), *_ORDER),
                responses={200: SuccessResponse(text="the images", content={**_OUTPUT.content, **_EVENTS})}
                | _ORDER_RESPONSES,
                errors=_ORDER_ERRORS,
                is_held=True,
            ),
            submit(
                "POST",
                "/fal/{owner}/{alias}",
                self.submit_request,
                operation_id="falSubmit",
                parameters=(*_APP, *_ORDER),
            ),
            submit(
                "POST",
                "/fal/{owner}/{alias}/{endpoint}",
                self.submit_request,
                operation_id="falSubmitEndpoint",
                parameters=(*_APP, Parameter("endpoint", "path", "edit"), *_ORDER),
            ),
        ]

    def _request_endpoints(self) -> list[Endpoint]:
        endpoint = partial(Endpoint, access="caller", tag=_TAG, parameters=_REQUEST, errors=_REQUEST_ERRORS)
        return [
            endpoint(
                "GET",
                f"{_REQUEST_PATH}/status",
                self.get_request_status,
                operation_id="falGetStatus",
                parameters=(*_REQUEST, _LOGS),
                responses={200: _ENDED, 202: _RUNNING, **_AWAY},
                is_quiet=True,
            ),
            endpoint(
                "GET",
                f"{_REQUEST_PATH}/status/stream",
                self.stream_request_status,
                operation_id="falStreamStatus",
                parameters=(*_REQUEST, _LOGS),
                responses={200: SuccessResponse(text="the status now and at each change", content=_EVENTS), **_AWAY},
            ),
            endpoint(
                "PUT",
                f"{_REQUEST_PATH}/cancel",
                self.cancel_request,
                operation_id="falCancel",
                responses={202: _CANCELED, 400: _TOO_LATE, **_AWAY},
            ),
            endpoint(
                "GET",
                _REQUEST_PATH,
                self.get_request_result,
                operation_id="falGetResult",
                responses={200: _OUTPUT} | _RESULT_RESPONSES,
                is_held=True,
            ),
        ]

    # -- orders

    async def run_app(self, request: Request) -> Response:
        """Run an app of fal, and wait for the images.

        With `/stream` behind the app, the answer is an event stream with one event.
        """
        return await self.runs.run(request, FalTarget.from_path(request))

    async def submit_request(self, request: Request) -> Response:
        """Submit a request to the queue of fal."""
        return await self.queue.submit(request, FalTarget.from_path(request))

    # -- requests

    async def get_request_status(self, request: Request) -> Response:
        """Get the status of a request at fal."""
        return await self.queue.get_status(request, FalTarget.from_path(request))

    async def stream_request_status(self, request: Request) -> Response:
        """Stream the status of a request at fal."""
        return await self.queue.stream_status(request, FalTarget.from_path(request))

    async def get_request_result(self, request: Request) -> Response:
        """Get the images of a request at fal."""
        return await self.queue.get_result(request, FalTarget.from_path(request))

    async def cancel_request(self, request: Request) -> Response:
        """Cancel a request at fal."""
        return await self.queue.cancel(request, FalTarget.from_path(request))

    # -- the proxy

    async def forward_request(self, request: Request) -> Response:
        """Do what an address at fal stands for, for its JavaScript client.

        The header `x-fal-target-url` names the address. The broker does it itself: no request leaves it.
        """
        method = "GET" if request.method == "HEAD" else request.method
        target = read_target(method, request.headers.get(TARGET_URL, ""))
        if target is None:
            message = f"Invalid request: {TARGET_URL} must be an address of fal that the broker serves."
            body = FalError(detail=message, message=message)
            return json_response(body.to_document(), 400, {REQUEST_ID: request_id_of(request)})
        kind, meant = target
        handlers: Mapping[Kind, Callable[[Request, FalTarget], Awaitable[Response]]] = {
            "run": self.runs.run,
            "submit": self.queue.submit,
            "status": self.queue.get_status,
            "stream": self.queue.stream_status,
            "result": self.queue.get_result,
            "cancel": self.queue.cancel,
            "upload": self.uploads.initiate,
        }
        return await handlers[kind](request, meant)

    # -- uploads and keys

    async def initiate_upload(self, request: Request) -> Response:
        """Get the addresses of a file that is uploaded next."""
        return await self.uploads.initiate(request, FalTarget.from_path(request))

    async def store_upload(self, request: Request) -> Response:
        """Store the bytes of a file at its upload address."""
        return await self.uploads.store(request)

    async def get_webhook_keys(self, _: Request) -> Response:
        """Get the keys that sign webhooks in fal's form."""
        return json_response(
            self.read_keys().to_document(), headers={"cache-control": f"public, max-age={JWKS_SECONDS}"}
        )
