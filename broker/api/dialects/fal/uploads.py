"""Uploads: the address of a file first, then its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.fal.errors import REQUEST_ID, request_id_of
from broker.api.dialects.fal.schemas import FalUploadRequest, FalUploadUrls
from broker.api.dialects.fal.targets import FalTarget
from broker.api.http.endpoint import principal_of
from broker.api.http.request_body import BoundedRequest, read_json_model
from broker.api.http.responses import json_response
from broker.api.shared.files import SharedFiles
from broker.ordering.files import FileDetails
from storage.ids import new_file_id

MAX_BODY_BYTES = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class FalUploads:
    shared: SharedFiles

    async def initiate(self, request: Request, _: FalTarget) -> Response:
        """Return where the bytes of a file are sent, and the address that the file then has in an order."""
        parsed = await read_json_model(request, MAX_BODY_BYTES, FalUploadRequest)
        details = FileDetails(name=parsed.file_name, chosen_id=new_file_id())
        upload = await self.shared.files.begin_upload(principal_of(request).owner, details, None)
        base = self.shared.base_for(request)
        urls = FalUploadUrls(
            upload_url=f"{base}/fal/storage/uploads/{upload.id}/file", file_url=f"{base}/fal/files/{upload.file_id}"
        )
        return json_response(urls.to_document(), 200, {REQUEST_ID: request_id_of(request)})

    async def store(self, request: Request) -> Response:
        """Store the body of a request as the file of the upload that its path names. Raises `ApiError`."""
        files = self.shared.files
        upload = await files.get_upload(request.path_params["id"])
        await files.finish_upload(upload, 0, BoundedRequest(request, files.max_bytes).stream())
        return json_response({}, 200, {REQUEST_ID: request_id_of(request)})
