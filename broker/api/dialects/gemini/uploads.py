"""Uploads of the Gemini API: in one request, or resumable ones, which SDKs use.

POST /upload/v1beta/files              start → x-goog-upload-url; or the whole file (`raw`, `multipart`)
POST /upload/v1beta/files/{upload}     upload · upload, finalize · query · cancel

The address of a resumable upload holds its own secret: SDKs send no key to it. They repeat a request whose answer has
no `x-goog-upload-status`, so an error that repeating cannot cure has one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.gemini.errors import render_error
from broker.api.dialects.gemini.files import GeminiUploaded, make_file
from broker.api.dialects.gemini.related import read_related
from broker.api.dialects.gemini.requests import GeminiInput
from broker.api.dialects.gemini.routes import VERSIONS
from broker.api.http.endpoint import Endpoint, Parameter, json_success, principal_of
from broker.api.http.request_body import BoundedRequest, media_type_of, read_json_model
from broker.api.http.responses import json_response
from broker.api.shared.files import SharedFiles
from broker.errors import ApiError
from broker.metrics import Metrics
from broker.ordering.files import FileDetails
from storage.files.resumable_uploads import ResumableUpload
from storage.files.uploaded_files import UploadedFile

MAX_START_BYTES: Final = 64 * 1024
STATUS: Final = "x-goog-upload-status"
RECEIVED: Final = "x-goog-upload-size-received"
_PATH: Final = "/upload/{version}/files"
_BYTES: Final = {"type": "string", "format": "binary"}
_ERRORS: Final = ("invalid_request", "invalid_image", "payload_too_large", "conflict")


class GeminiFileStart(GeminiInput):
    """What the caller says about its file."""

    name: str | None = None
    display_name: str | None = None

    def to_details(self, file_name: str) -> FileDetails:
        """file_name: shown if the caller chose no name to show."""
        chosen = (self.name or "").removeprefix("files/") or None
        return FileDetails(name=self.display_name or file_name, chosen_id=chosen)


class GeminiUploadStart(GeminiInput):
    file: GeminiFileStart = GeminiFileStart()


@dataclass(frozen=True, kw_only=True)
class GeminiUploadRoutes:
    files: SharedFiles
    metrics: Metrics

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of both versions of the API."""
        return [one for version, suffix in VERSIONS for one in self._endpoints_of(version, suffix)]

    def _endpoints_of(self, version: str, suffix: str) -> list[Endpoint]:
        path = _PATH.format(version=version)
        uploaded = json_success("the file; for a resumable upload nothing yet", GeminiUploaded)
        return [
            Endpoint(
                "POST",
                path,
                self.begin_upload,
                operation_id=f"geminiBeginUpload{suffix}",
                access="caller",
                tag="Gemini",
                parameters=_START_HEADERS,
                request={"application/json": GeminiUploadStart, "multipart/related": _BYTES, "image/*": _BYTES},
                responses={200: uploaded},
                errors=_ERRORS,
            ),
            Endpoint(
                "POST",
                f"{path}/{{upload}}",
                self.continue_upload,
                operation_id=f"geminiContinueUpload{suffix}",
                access="public",
                tag="Gemini",
                parameters=(Parameter("upload", "path", "the secret in x-goog-upload-url"), *_PART_HEADERS),
                request={"application/octet-stream": _BYTES},
                responses={200: uploaded},
                errors=(*_ERRORS, "not_found"),
            ),
        ]

    # -- beginning

    async def begin_upload(self, request: Request) -> Response:
        """Upload a file, or begin a resumable upload."""
        protocol = _upload_protocol(request)
        if protocol == "resumable":
            return await self._begin_resumable(request)
        if protocol == "multipart":
            start, content = await read_related(
                request, self.files.files.max_bytes + MAX_START_BYTES, GeminiUploadStart
            )
            caller, details = principal_of(request).owner, start.file.to_details(_file_name(request))
            return self._finished(request, await self.files.files.store(caller, content, details))
        view = await self.files.store_body(request, FileDetails(name=_file_name(request)))
        return self._finished(request, view.file)

    async def _begin_resumable(self, request: Request) -> Response:
        if _command(request) != {"start"}:
            message = "Begin a resumable upload with X-Goog-Upload-Command: start."
            raise ApiError("invalid_request", message, field="X-Goog-Upload-Command")
        start = GeminiUploadStart()
        if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
            start = await read_json_model(request, MAX_START_BYTES, GeminiUploadStart)
        announced = request.headers.get("x-goog-upload-header-content-length", "")
        upload = await self.files.files.begin_upload(
            principal_of(request).owner,
            start.file.to_details(_file_name(request)),
            int(announced) if re.fullmatch(r"[0-9]{1,18}", announced) else None,
        )
        url = f"{self.files.base_for(request)}{request.url.path.rstrip('/')}/{upload.id}"
        return json_response({}, headers={"x-goog-upload-url": url, STATUS: "active"})

    # -- continuing

    async def continue_upload(self, request: Request) -> Response:
        """Send the next part of a resumable upload, or its last; ask how far it is; or cancel it."""
        try:
            return await self._continue(request)
        except ApiError as error:
            if error.retryable:
                raise
            self.metrics.request_errors.labels(error.code).inc()
            return render_error(request, error, {STATUS: "final"})

    async def _continue(self, request: Request) -> Response:
        upload, command = await self.files.files.get_upload(request.path_params["upload"]), _command(request)
        if command == {"query"}:
            return await self._show(request, upload)
        if command == {"cancel"}:
            await self.files.files.cancel_upload(upload)
            return json_response({}, headers={STATUS: "cancelled"})
        if not command or not command <= {"upload", "finalize"}:
            message = "X-Goog-Upload-Command must be upload, finalize, both, query or cancel."
            raise ApiError("invalid_request", message, field="X-Goog-Upload-Command")
        media_type_of(request)  # refuses encoded bodies
        offset = _offset(request, upload)
        async with aclosing(BoundedRequest(request, self.files.files.max_bytes).stream()) as chunks:
            if "finalize" in command:
                return self._finished(request, await self.files.files.finish_upload(upload, offset, chunks))
            upload = await self.files.files.append_part(upload, offset, chunks)
        return json_response({}, headers=_progress(upload))

    async def _show(self, request: Request, upload: ResumableUpload) -> Response:
        if upload.finished_as:
            return self._finished(request, await self.files.files.get(upload.caller, upload.finished_as))
        return json_response({}, headers=_progress(upload))

    def _finished(self, request: Request, file: UploadedFile) -> Response:
        body = GeminiUploaded(file=make_file(self.files.view(request, file)))
        return json_response(body.to_document(), headers={STATUS: "final", RECEIVED: str(file.size)})


def _progress(upload: ResumableUpload) -> dict[str, str]:
    return {STATUS: "active", RECEIVED: str(upload.received)}


def _upload_protocol(request: Request) -> str:
    """Return `resumable`, `multipart` or `raw`. Raises `ApiError` for another."""
    queries = request.query_params
    given = request.headers.get("x-goog-upload-protocol") or queries.get("upload_protocol") or queries.get("uploadType")
    if not given and media_type_of(request)[0] == "multipart/related":
        return "multipart"
    protocol = {"media": "raw", None: "raw"}.get(given, given or "raw").lower()
    if protocol not in {"resumable", "multipart", "raw"} or (not given and media_type_of(request)[0] == _JSON):
        message = "X-Goog-Upload-Protocol must be resumable, multipart or raw."
        raise ApiError("invalid_request", message, field="X-Goog-Upload-Protocol")
    return protocol


def _command(request: Request) -> set[str]:
    return {
        word.strip().lower() for word in request.headers.get("x-goog-upload-command", "").split(",") if word.strip()
    }


def _offset(request: Request, upload: ResumableUpload) -> int:
    """Return the offset of a part; without a header the next one."""
    text = request.headers.get("x-goog-upload-offset")
    if text is None:
        return upload.received
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ApiError("invalid_request", "X-Goog-Upload-Offset must be a number.", field="X-Goog-Upload-Offset")
    return int(text)


def _file_name(request: Request) -> str:
    return request.headers.get("x-goog-upload-file-name", "").encode("latin-1").decode("utf-8", "replace")


def _header(name: str, text: str, **schema: Any) -> Parameter:
    described: Mapping[str, Any] = {"type": "string", **schema}
    return Parameter(name, "header", text, described)


_JSON: Final = "application/json"
_START_HEADERS: Final = (
    _header("X-Goog-Upload-Protocol", "how the file is sent", enum=["resumable", "multipart", "raw"]),
    _header("X-Goog-Upload-Command", "`start` for a resumable upload"),
    _header("X-Goog-Upload-Header-Content-Length", "the bytes that will follow"),
    _header("X-Goog-Upload-File-Name", "the name of the file"),
)
_PART_HEADERS: Final = (
    _header("X-Goog-Upload-Command", "`upload`, `upload, finalize`, `finalize`, `query` or `cancel`"),
    _header("X-Goog-Upload-Offset", "of the first byte; by default the next one"),
)
