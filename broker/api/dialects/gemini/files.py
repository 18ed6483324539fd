"""Files of the Gemini API: their description, and the routes of `/v1beta/files`; those of `/v1/files` are shared."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.dialects.gemini.requests import GeminiFileData
from broker.api.http.endpoint import Endpoint, Parameter, json_success
from broker.api.http.responses import json_response
from broker.api.shared.files import FilePage, FilesQuery, FileView, SharedFiles
from broker.clock import iso
from broker.errors import ApiError
from broker.orders import ReferenceSource, UrlReference
from broker.presenter import Absent, Moment, ResponseModel

NAME_PREFIX = "files/"


class GeminiFile(ResponseModel):
    name: str
    display_name: str | Absent = None
    mime_type: str
    size_bytes: Annotated[str, Field(description="a number; JSON has no integers of 64 bits")]
    create_time: Moment
    update_time: Moment
    expiration_time: Moment
    sha256_hash: Annotated[str, Field(description="base64")]
    uri: Annotated[str, Field(description="for `fileData.fileUri`")]
    state: str
    source: str


class GeminiFileList(ResponseModel):
    files: list[GeminiFile]
    next_page_token: str | Absent = None


class GeminiUploaded(ResponseModel):
    file: GeminiFile


@dataclass(frozen=True, kw_only=True)
class GeminiFileRoutes:
    files: SharedFiles

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of `/v1beta`."""
        endpoint = partial(Endpoint, access="caller", tag="Gemini")
        one = partial(
            endpoint,
            path="/v1beta/files/{id}",
            parameters=(Parameter("id", "path", "of a file, without `files/`"),),
            errors=("not_found",),
        )
        return [
            endpoint(
                "GET",
                "/v1beta/files",
                self.list_gemini_files,
                query=FilesQuery,
                responses={200: json_success("the files of the caller, newest first", GeminiFileList)},
            ),
            one("GET", handler=self.get_gemini_file, responses={200: json_success("the file", GeminiFile)}),
            one(
                "DELETE", handler=self.delete_gemini_file, responses={200: json_success("deleted", {"type": "object"})}
            ),
        ]

    async def list_gemini_files(self, request: Request) -> Response:
        """List uploaded files."""
        return json_response(describe_files(await self.files.read_page(request)))

    async def get_gemini_file(self, request: Request) -> Response:
        """Get an uploaded file."""
        return json_response(describe_file(await self.files.read_file(request)))

    async def delete_gemini_file(self, request: Request) -> Response:
        """Delete an uploaded file.

        Orders that used it keep their copy.
        """
        await self.files.delete_file(request)
        return json_response(describe_deletion())


def make_file(view: FileView) -> GeminiFile:
    file = view.file
    created_at = str(iso(file.created_at))
    return GeminiFile(
        name=f"{NAME_PREFIX}{file.id}",
        display_name=file.name or None,
        mime_type=file.media_type,
        size_bytes=str(file.size),
        create_time=created_at,
        update_time=created_at,
        expiration_time=str(iso(view.expires_at)),
        sha256_hash=base64.b64encode(bytes.fromhex(file.sha256)).decode(),
        uri=f"{view.base}/v1beta/{NAME_PREFIX}{file.id}",
        state="ACTIVE",
        source="UPLOADED",
    )


def describe_file(view: FileView) -> dict[str, Any]:
    return make_file(view).to_document()


def describe_files(page: FilePage) -> dict[str, Any]:
    listed = GeminiFileList(files=[make_file(view) for view in page.files], next_page_token=page.next_cursor)
    return listed.to_document()


def describe_deletion() -> dict[str, Any]:
    return {}


def find_file(file: GeminiFileData) -> ReferenceSource:
    """Return the reference that a part of a request names: a file by its name or URI, or an image on the web."""
    uri = file.file_uri
    if uri.startswith(NAME_PREFIX):
        return UrlReference(url=f"/v1beta/{uri}")
    if uri.startswith(("http://", "https://", "/")):
        return UrlReference(url=uri)
    message = "Only uploaded files and web addresses are read: send the uri of a file, or the image in inlineData."
    raise ApiError("invalid_request", message, field="fileData.fileUri")
