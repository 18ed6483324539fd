"""The upload routes of kie.ai: reference images that a client sends ahead of its orders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import quote, unquote

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.kie.schemas import (
    KieBase64Upload,
    KieFile,
    KieUpload,
    KieUploaded,
    KieUploadForm,
    KieUrlUpload,
)
from broker.api.http.blob_responses import BlobResponse
from broker.api.http.endpoint import Endpoint, Parameter, SuccessResponse, json_success
from broker.api.http.request_body import read_json_model, validation_error
from broker.api.http.responses import IMAGE_SECURITY_HEADERS, json_response
from broker.api.shared.files import FORM_OVERHEAD_BYTES, FileView, SharedFiles
from broker.clock import iso
from broker.ordering.files import FileDetails
from uploads.detect import MEDIA_TYPES

MAX_URL_BODY_BYTES: Final = 64 * 1024
_EXTENSIONS: Final = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}


@dataclass(frozen=True, kw_only=True)
class KieUploadRoutes:
    files: SharedFiles

    def endpoints(self) -> list[Endpoint]:
        upload = partial(
            Endpoint,
            "POST",
            access="caller",
            tag="kie.ai",
            responses={200: json_success("the file is stored, or refused", KieUploaded)},
            errors=("payload_too_large",),
        )
        content = {media_type: {"type": "string", "format": "binary"} for media_type in MEDIA_TYPES}
        return [
            upload(
                "/api/file-stream-upload",
                self.upload_stream,
                operation_id="kieStreamUpload",
                request={"multipart/form-data": KieUploadForm},
            ),
            upload(
                "/api/file-base64-upload",
                self.upload_base64,
                operation_id="kieBase64Upload",
                request={"application/json": KieBase64Upload},
            ),
            upload(
                "/api/file-url-upload",
                self.upload_url,
                operation_id="kieUrlUpload",
                request={"application/json": KieUrlUpload},
            ),
            Endpoint(
                "GET",
                "/api/files/{id}/{name}",
                self.download_file,
                operation_id="kieDownloadFile",
                access="caller",
                tag="kie.ai",
                parameters=(Parameter("id", "path", "of the file"), Parameter("name", "path", "any")),
                responses={200: SuccessResponse(text="the file", content=content)},
                errors=("not_found",),
            ),
        ]

    async def upload_stream(self, request: Request) -> Response:
        """Upload a file in the way of kie.ai."""
        return _answer(await self.files.store_form(request, "file", _read_form_details))

    async def upload_base64(self, request: Request) -> Response:
        """Upload a file as base64 in the way of kie.ai."""
        max_bytes = self.files.files.max_bytes * 4 // 3 + FORM_OVERHEAD_BYTES
        parsed = await read_json_model(request, max_bytes, KieBase64Upload)
        return _answer(await self.files.store_bytes(request, parsed.data, parsed.to_details()))

    async def upload_url(self, request: Request) -> Response:
        """Upload a file by its address in the way of kie.ai."""
        parsed = await read_json_model(request, MAX_URL_BODY_BYTES, KieUrlUpload)
        path = re.split(r"[?#]", parsed.file_url.partition("://")[2])[0].partition("/")[2]
        name = unquote(path.rpartition("/")[2])
        return _answer(await self.files.store_url(request, parsed.file_url, parsed.to_details(name)))

    async def download_file(self, request: Request) -> Response:
        """Download an uploaded file."""
        file = (await self.files.read_file(request)).file
        headers = {**IMAGE_SECURITY_HEADERS, "content-length": str(file.size), "cache-control": "no-store"}
        headers["content-type"] = file.media_type
        return BlobResponse(await self.files.files.open(file), 200, headers)


def _read_form_details(form: FormData, part: UploadFile) -> FileDetails:
    texts = {name: value for name, value in form.items() if isinstance(value, str) and name != "file"}
    try:
        return KieUpload.model_validate(texts).to_details(part.filename or "")
    except ValidationError as error:
        raise validation_error(error) from error


def _answer(view: FileView) -> Response:
    file = view.file
    name = file.name or f"{file.id}.{_EXTENSIONS.get(file.media_type, 'bin')}"
    stored = KieFile(
        file_name=name,
        file_path=f"{file.metadata['uploadPath']}/{name}",
        download_url=f"{view.base}/api/files/{file.id}/{quote(name.replace('/', '-'), safe='')}",
        file_size=file.size,
        mime_type=file.media_type,
        uploaded_at=iso(file.created_at) or "",
    )
    answer = KieUploaded(success=True, code=200, msg="File uploaded successfully", data=stored)
    return json_response(answer.to_document())
