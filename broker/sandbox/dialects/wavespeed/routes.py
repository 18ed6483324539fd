"""Endpoints of WaveSpeed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.sandbox.answers import json_response
from broker.sandbox.dialects.wavespeed.models import validate_order
from broker.sandbox.dialects.wavespeed.records import build_prediction, webhook_secret
from broker.sandbox.orders import RejectedRequest
from broker.sandbox.service import Handler, JobService, authorization_key, media_type_of, read_json


def respond_to_rejected(error: RejectedRequest) -> Response:
    status = error.status or error.code
    return json_response({"code": error.code, "message": error.msg}, status=status, headers=error.headers)


class WaveSpeedRoutes:
    """One method per endpoint."""

    def __init__(self, service: JobService) -> None:
        self._service = service

    def build(self) -> Sequence[Route]:
        return [
            Route("/api/v3/predictions/{id}/result", self._guard(self.get_result)),
            Route("/api/v3/media/upload/binary", self._guard(self.upload_file), methods=["POST"]),
            Route("/api/v3/webhook/secret", self._guard(self.get_secret)),
            Route("/api/v3/balance", self._guard(self.get_balance)),
            Route("/api/v3/google/{name}/{mode}", self._guard(self.create_prediction), methods=["POST"]),
        ]

    def _guard(self, handler: Handler) -> Handler:
        return self._service.guard(handler, authorization_key("Bearer"))

    async def create_prediction(self, request: Request) -> Response:
        name, mode = request.path_params["name"], request.path_params["mode"]
        fields = await read_json(request)
        order = validate_order(name, mode, fields, request.query_params.get("webhook"))
        job = await self._service.submit(order, {"model": f"google/{name}/{mode}", "input": fields})
        if isinstance(job, Response):
            return job
        return _respond(build_prediction(self._service.view(job), self._service.base_url))

    async def get_result(self, request: Request) -> Response:
        view = self._service.read(request.path_params["id"])
        if view is None:
            raise RejectedRequest(404, "prediction not found")
        return _respond(build_prediction(view, self._service.base_url))

    async def upload_file(self, request: Request) -> Response:
        async with request.form() as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RejectedRequest(400, "file is required")
            data = await file.read()
            name = file.filename or "file"
        url = await self._service.store_file(data, f"wavespeed/{name}")
        stored = {
            "type": media_type_of(name).partition("/")[0],
            "download_url": url,
            "filename": name,
            "size": len(data),
        }
        return _respond(stored)

    async def get_secret(self, _request: Request) -> Response:
        return _respond({"secret": webhook_secret(self._service.options)})

    async def get_balance(self, _request: Request) -> Response:
        return _respond({"balance": self._service.balance()})


def _respond(data: Any) -> Response:
    return json_response({"code": 200, "message": "success", "data": data})
