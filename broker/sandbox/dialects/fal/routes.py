"""Endpoints of fal: the queue (queue.fal.run), and uploads and signing keys (rest.fal.ai)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.sandbox.answers import json_response
from broker.sandbox.dialects.fal.faults import FAILURES, FalFault
from broker.sandbox.dialects.fal.models import validate_input
from broker.sandbox.dialects.fal.records import (
    RUNNING,
    build_detail,
    build_error,
    build_output,
    build_status,
    build_ticket,
)
from broker.sandbox.dialects.fal.signing import SigningKeys
from broker.sandbox.faults import FaultName
from broker.sandbox.jobs import JobView
from broker.sandbox.orders import RejectedRequest, require
from broker.sandbox.service import Handler, JobService, authorization_key, read_json

UPLOAD_FOLDER = "fal"


def respond_to_rejected(error: RejectedRequest) -> Response:
    """Return fal's error body: a list of details for an invalid input, else a sentence."""
    status = error.status or error.code
    detail = [build_detail("value_error", error.msg, None)] if status == 422 else error.msg
    return json_response({"detail": detail}, status=status, headers=error.headers)


class FalRoutes:
    """One method per endpoint."""

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._keys = SigningKeys(service.options.webhook_key)

    def build(self) -> Sequence[Route]:
        request = "/{owner}/{app}/requests/{id}"
        return [
            Route("/.well-known/jwks.json", self.get_keys),
            Route("/storage/upload/initiate", self._guard(self.initiate_upload), methods=["POST"]),
            Route("/storage/put/{name}", self.put_file, methods=["PUT"]),
            Route(f"{request}/status", self._guard(self.get_status)),
            Route(f"{request}/cancel", self._guard(self.cancel_request), methods=["PUT"]),
            Route(request, self._guard(self.get_result)),
            Route("/{owner}/{app}", self._guard(self.submit), methods=["POST"]),
            Route("/{owner}/{app}/{edit}", self._guard(self.submit), methods=["POST"]),
        ]

    def _guard(self, handler: Handler) -> Handler:
        return self._service.guard(handler, authorization_key("Key"))

    # -- the queue

    async def submit(self, request: Request) -> Response:
        path = request.path_params
        app, edit = f"{path['owner']}/{path['app']}", path.get("edit")
        require(edit in {None, "edit"}, f"Path /{edit} not found", 404)
        fields = await read_json(request)
        order = validate_input(app, edit is not None, fields, request.query_params.get("fal_webhook"))
        job = await self._service.submit(order, {"app": app, "path": edit or "", "input": fields})
        if isinstance(job, Response):
            return job
        ticket = {"status": "IN_QUEUE", "queue_position": 0, **build_ticket(job, self._service.base_url)}
        return json_response(ticket, headers={"x-fal-request-id": job.id})

    async def get_status(self, request: Request) -> Response:
        body = build_status(self._find(request), self._service.base_url)
        return json_response(body, status=202 if body["status"] in RUNNING else 200)

    async def get_result(self, request: Request) -> Response:
        view = self._find(request)
        if view.failure:
            code, kind = FAILURES[view.failure.kind]
            return json_response(build_error(view.failure, view.job), status=code, headers={"x-fal-error-type": kind})
        if view.stage != "success":
            raise RejectedRequest(400, "Request is still in progress")
        return json_response(build_output(view))

    async def cancel_request(self, request: Request) -> Response:
        is_canceled = self._service.cancel(self._find(request).job.id)
        if is_canceled:
            return json_response({"status": "CANCELLATION_REQUESTED"}, status=202)
        return json_response({"status": "ALREADY_COMPLETED"}, status=400)

    def _find(self, request: Request) -> JobView:
        """Return the job of an address; the app must be that of the order, without its sub-path."""
        path = request.path_params
        view = self._service.read(path["id"])
        if view is None or view.job.request["app"] != f"{path['owner']}/{path['app']}":
            raise RejectedRequest(404, "Request not found")
        return view

    # -- files and keys

    async def initiate_upload(self, request: Request) -> Response:
        fields = await read_json(request)
        require(request.query_params.get("storage_type") == "fal-cdn-v3", "storage_type is not known")
        require(bool(fields.get("file_name")) and bool(fields.get("content_type")), "file_name is required")
        name = f"{secrets.token_hex(8)}_{str(fields['file_name']).replace('/', '_')}"
        base = self._service.base_url
        return json_response(
            {
                "upload_url": f"{base}/storage/put/{quote(name)}?signature=of-the-sandbox",
                "file_url": f"{base}/files/{UPLOAD_FOLDER}/{quote(name)}",
            }
        )

    async def put_file(self, request: Request) -> Response:
        """Store the bytes of an upload; its address is the permission."""
        if request.query_params.get("signature") != "of-the-sandbox":
            raise RejectedRequest(403, "the signature is wrong")
        await self._service.store_file(await request.body(), f"{UPLOAD_FOLDER}/{request.path_params['name']}")
        return Response(status_code=200)

    async def get_keys(self, _request: Request) -> Response:
        if self._is_requested(FalFault.KEYS_DOWN):
            raise RejectedRequest(503, "unavailable")
        return json_response(self._keys.publish(2 if self._is_requested(FalFault.ROTATED) else 1))

    def _is_requested(self, fault: FaultName) -> bool:
        """Return whether any job so far has a fault."""
        return any(fault in self._service.faults_of(job["prompt"]) for job in self._service.list_jobs())
