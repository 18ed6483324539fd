"""Endpoints of nanobananaapi.ai."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.sandbox.answers import json_response
from broker.sandbox.dialects.nanobananaapi.models import validate_order
from broker.sandbox.dialects.nanobananaapi.records import build_record, envelope
from broker.sandbox.orders import RejectedRequest
from broker.sandbox.service import Handler, JobService, authorization_key, read_json


def respond_to_rejected(error: RejectedRequest) -> Response:
    """Return an error envelope, by default with HTTP 200: the code in the body decides."""
    return json_response(envelope(error.code, error.msg), status=error.status or 200, headers=error.headers)


class NanoBananaApiRoutes:
    """One method per endpoint."""

    def __init__(self, service: JobService) -> None:
        self._service = service

    def build(self) -> Sequence[Route]:
        return [
            Route("/api/v1/nanobanana/record-info", self._guard(self.get_record)),
            Route("/api/v1/nanobanana/{endpoint}", self._guard(self.create_task), methods=["POST"]),
            Route("/api/v1/common/credit", self._guard(self.get_credits)),
        ]

    def _guard(self, handler: Handler) -> Handler:
        return self._service.guard(handler, authorization_key("Bearer"))

    async def create_task(self, request: Request) -> Response:
        endpoint, body = request.path_params["endpoint"], await read_json(request)
        job = await self._service.submit(validate_order(endpoint, body), {"endpoint": endpoint, "body": body})
        return job if isinstance(job, Response) else _success({"taskId": job.id})

    async def get_record(self, request: Request) -> Response:
        if "taskId" not in request.query_params:  # a fault of the client, reported as one of the server
            raise RejectedRequest(500, "Server exception, please check the parameters and try again")
        view = self._service.read(request.query_params["taskId"])
        if view is None:
            raise RejectedRequest(422, "recordInfo is null")
        return _success(build_record(view))

    async def get_credits(self, _request: Request) -> Response:
        return _success(self._service.balance())


def _success(data: Any) -> Response:
    return json_response(envelope(200, "success", data))
