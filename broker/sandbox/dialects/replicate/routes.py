"""Endpoints of Replicate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.sandbox.answers import json_response
from broker.sandbox.dialects.replicate.models import validate_prediction
from broker.sandbox.dialects.replicate.records import build_prediction, webhook_secret
from broker.sandbox.jobs import JobView
from broker.sandbox.orders import RejectedRequest
from broker.sandbox.service import Handler, JobService, authorization_key, read_json

NOT_FOUND = "The requested resource could not be found."


def respond_to_rejected(error: RejectedRequest) -> Response:
    status = error.status or error.code
    return json_response({"detail": error.msg, "status": status}, status=status, headers=error.headers)


class ReplicateRoutes:
    """One method per endpoint."""

    def __init__(self, service: JobService) -> None:
        self._service = service

    def build(self) -> Sequence[Route]:
        prediction = "/v1/predictions/{id}"
        return [
            Route("/v1/models/{owner}/{name}/predictions", self._guard(self.create_of_model), methods=["POST"]),
            Route("/v1/predictions", self._guard(self.create_prediction), methods=["POST"]),
            Route(prediction, self._guard(self.get_prediction)),
            Route(f"{prediction}/cancel", self._guard(self.cancel_prediction), methods=["POST"]),
            Route("/v1/files", self._guard(self.upload_file), methods=["POST"]),
            Route("/v1/account", self._guard(self.get_account)),
            Route("/v1/webhooks/default/secret", self._guard(self.get_secret)),
        ]

    def _guard(self, handler: Handler) -> Handler:
        return self._service.guard(handler, authorization_key("Bearer"))

    async def create_of_model(self, request: Request) -> Response:
        return await self._create(request, f"{request.path_params['owner']}/{request.path_params['name']}")

    async def create_prediction(self, request: Request) -> Response:
        """Create a prediction of the model, or of the version of one, that the body names."""
        version = str((await read_json(request)).get("version", ""))
        return await self._create(request, version.partition(":")[0])

    async def _create(self, request: Request, model: str) -> Response:
        body = await read_json(request)
        job = await self._service.submit(validate_prediction(model, body), {"model": model, **body})
        return job if isinstance(job, Response) else self._respond(self._service.view(job), status=201)

    async def get_prediction(self, request: Request) -> Response:
        view = self._service.read(request.path_params["id"])
        if view is None:
            raise RejectedRequest(404, NOT_FOUND)
        return self._respond(view)

    async def cancel_prediction(self, request: Request) -> Response:
        job_id = request.path_params["id"]
        if self._service.cancel(job_id) is None:
            raise RejectedRequest(404, NOT_FOUND)
        view = self._service.read(job_id)
        return self._respond(view) if view else json_response({})

    def _respond(self, view: JobView, *, status: int = 200) -> Response:
        now = self._service.options.now()
        return json_response(build_prediction(view, self._service.base_url, now), status=status)

    async def upload_file(self, request: Request) -> Response:
        async with request.form() as form:
            file = form.get("content")
            if not isinstance(file, UploadFile):
                raise RejectedRequest(400, "content is required")
            data = await file.read()
            name = file.filename or "file"
        digest = hashlib.sha256(data).hexdigest()
        now = datetime.fromtimestamp(self._service.options.now(), UTC)
        stored = {
            "id": digest[:26],
            "name": name,
            "content_type": file.content_type,
            "size": len(data),
            "etag": digest[:32],
            "checksums": {"sha256": digest},
            "metadata": {},
            "created_at": now.isoformat(),
            "expires_at": (now + timedelta(hours=24)).isoformat(),
            "urls": {"get": await self._service.store_file(data, f"replicate/{name}")},
        }
        return json_response(stored, status=201)

    async def get_account(self, _request: Request) -> Response:
        return json_response({"type": "user", "username": "sandbox", "name": "Sandbox"})

    async def get_secret(self, _request: Request) -> Response:
        return json_response({"key": webhook_secret(self._service.options)})
