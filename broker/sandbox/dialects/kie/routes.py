"""Endpoints of kie.ai."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.sandbox.answers import json_response
from broker.sandbox.dialects.kie.faults import KieFault, apply_envelope_faults
from broker.sandbox.dialects.kie.models import validate_request
from broker.sandbox.dialects.kie.records import build_record, envelope
from broker.sandbox.download_faults import not_found
from broker.sandbox.faults import Faults
from broker.sandbox.orders import RejectedRequest
from broker.sandbox.service import Handler, JobService, authorization_key, media_type_of, read_json

FRESH_SECONDS = 20 * 60
"""Lifetime of a link from download-url."""


class RejectedUpload(RejectedRequest):
    """A rejected request to the file API, whose envelope has one more field."""


def respond_to_rejected(error: RejectedRequest) -> Response:
    """Return an error envelope, by default with HTTP 200: with kie.ai the code in the body decides."""
    extra = {"success": False} if isinstance(error, RejectedUpload) else {}
    body = {**extra, **envelope(error.code, error.msg)}
    return json_response(body, status=error.status or 200, headers=error.headers)


class KieRoutes:
    """One method per endpoint. `code` in the body decides; nearly every HTTP status is 200."""

    def __init__(self, service: JobService) -> None:
        self._service = service

    def build(self) -> Sequence[Route]:
        return [
            Route("/api/v1/jobs/createTask", self._guard(self.create_task), methods=["POST"]),
            Route("/api/v1/jobs/recordInfo", self._guard(self.get_record)),
            Route("/api/v1/chat/credit", self._guard(self.get_credits)),
            Route("/api/v1/common/download-url", self._guard(self.create_download_url), methods=["POST"]),
            Route("/api/file-stream-upload", self._guard(self.upload_file), methods=["POST"]),
            Route("/fresh/{name}", self.download_fresh),
        ]

    def _guard(self, handler: Handler) -> Handler:
        return self._service.guard(handler, authorization_key("Bearer"))

    async def create_task(self, request: Request) -> Response:
        body = await read_json(request)
        order = validate_request(body)
        faults = self._service.faults_of(order.prompt)
        if KieFault.CODE in faults:
            raise RejectedRequest(int(faults[KieFault.CODE]), f"refused with code {faults[KieFault.CODE]:.0f}")
        job = await self._service.submit(order, body)
        return job if isinstance(job, Response) else _success(faults, {"taskId": job.id, "recordId": job.id})

    async def get_record(self, request: Request) -> Response:
        task_id = request.query_params.get("taskId", "")
        if not task_id:
            raise RejectedRequest(400, "taskId parameter is required")
        view = self._service.read(task_id)
        if view is None:
            raise RejectedRequest(422, "recordInfo is null")
        return _success(view.job.faults, build_record(view))

    async def get_credits(self, _request: Request) -> Response:
        return _success({}, self._service.balance())

    async def create_download_url(self, request: Request) -> Response:
        url = str((await read_json(request)).get("url", ""))
        name = urlsplit(url).path.rpartition("/")[2]
        if self._service.find_result(name)[0] is None:
            raise RejectedRequest(422, "the url was not generated here")
        until = int(self._service.options.now()) + FRESH_SECONDS
        return _success({}, f"{self._service.base_url}/fresh/{name}?until={until}")

    async def download_fresh(self, request: Request) -> Response:
        until = request.query_params.get("until", "")
        if not until.isdecimal() or self._service.options.now() > int(until):
            return not_found()
        return await self._service.respond_to_download("fresh", request.path_params["name"])

    async def upload_file(self, request: Request) -> Response:
        async with request.form() as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RejectedUpload(400, "file is required")
            data = await file.read()
            name = str(form.get("fileName") or file.filename or hashlib.sha256(data).hexdigest()[:16])
            folder = str(form.get("uploadPath") or "")
        if not folder or folder != folder.strip("/") or not data:
            raise RejectedUpload(400, "uploadPath without slashes at its ends and some content are required")
        path = f"{folder}/{name}"
        stored = {
            "fileName": name,
            "filePath": path,
            "downloadUrl": await self._service.store_file(data, path),
            "fileSize": len(data),
            "mimeType": media_type_of(name),
            "uploadedAt": datetime.fromtimestamp(self._service.options.now(), UTC).isoformat(),
        }
        return json_response({"success": True, **envelope(200, "File uploaded successfully", stored)})


def _success(faults: Faults, data: Any) -> Response:
    return json_response(apply_envelope_faults(envelope(200, "success", data), faults))
