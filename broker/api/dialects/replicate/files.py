"""Files of Replicate's API: the upload, and their description in the shared routes of `/v1/files`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import Endpoint, json_success
from broker.api.http.responses import json_response
from broker.api.shared.files import FilePage, FileView, SharedFiles
from broker.api.shared.models import SnakeResponseModel
from broker.presenter import Moment

_FORM = {
    "type": "object",
    "required": ["content"],
    "properties": {
        "content": {"type": "string", "format": "binary", "description": "jpeg, png or webp"},
        "metadata": {"type": "string", "description": "a JSON object"},
    },
}


class ReplicateFile(SnakeResponseModel):
    id: str
    name: str
    content_type: str
    size: int
    etag: str
    checksums: dict[str, str]
    metadata: Mapping[str, Any]
    created_at: Moment
    expires_at: Moment
    urls: Annotated[dict[str, str], Field(description="`get` can be an input of a prediction")]


class ReplicateFilePage(SnakeResponseModel):
    next: str | None
    previous: None
    results: list[ReplicateFile]


@dataclass(frozen=True, kw_only=True)
class ReplicateFileRoutes:
    files: SharedFiles

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint that no other dialect has."""
        return [
            Endpoint(
                "POST",
                "/v1/files",
                self.upload_replicate_file,
                access="caller",
                tag="Replicate",
                request={"multipart/form-data": _FORM},
                responses={201: json_success("the file", ReplicateFile)},
                errors=("invalid_request", "invalid_image", "payload_too_large"),
            )
        ]

    async def upload_replicate_file(self, request: Request) -> Response:
        """Upload a file, to be used in predictions."""
        return json_response(describe_file(await self.files.store_form(request, "content")), 201)


def make_file(view: FileView) -> ReplicateFile:
    file = view.file
    return ReplicateFile.from_object(
        file,
        content_type=file.media_type,
        etag=file.sha256,
        checksums={"sha256": file.sha256},
        expires_at=view.expires_at,
        urls={"get": f"{view.base}/v1/files/{file.id}"},
    )


def describe_file(view: FileView) -> dict[str, Any]:
    return make_file(view).to_document()


def describe_files(page: FilePage) -> dict[str, Any]:
    following = f"{page.base}/v1/files?cursor={page.next_cursor}" if page.next_cursor else None
    results = [make_file(view) for view in page.files]
    return ReplicateFilePage(next=following, previous=None, results=results).to_document()
