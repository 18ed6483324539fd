"""Uploaded files in HTTP: what dialects share to take them in and to show them, and the routes of `/v1/files`.

A dialect shows a file by the documents `FILE` and `FILES`. One whose clients expect a body after a deletion has
`DELETED_FILE`; the clients of the others get 204.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from broker.api.http.addresses import own_base_url
from broker.api.http.endpoint import principal_of
from broker.api.http.pagination import MAX_LIMIT, split_page
from broker.api.http.query import EMPTY, ParsedText, QueryModel
from broker.api.http.request_body import (
    MAX_TEXT_BYTES,
    BoundedRequest,
    UploadedChunks,
    media_type_of,
    parse_json,
    read_form,
)
from broker.errors import ApiError
from broker.ordering.files import FileDetails, FileService
from broker.services import Services
from storage.files.uploaded_files import UploadedFile

FILE: Final = "file"
"""Document: a file (`FileView`) → its description."""
FILES: Final = "files"
"""Document: a page of files (`FilePage`) → the list."""
DELETED_FILE: Final = "deleted_file"
"""Document: nothing → the answer to a deletion."""

FORM_OVERHEAD_BYTES: Final = 512 * 1024
_CURSOR: Final = re.compile(r"([0-9]{1,12}\.[0-9]{1,12})-([a-z0-9-]{1,40})")


def _parse_cursor(text: str) -> tuple[float, str]:
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise ValueError("must be that of an earlier page")
    return float(match[1]), match[2]


def _parse_size(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise ValueError("must be a whole number from 1")
    return min(int(text), MAX_LIMIT)


_CURSOR_TEXT: Final = ParsedText(_parse_cursor, {"type": "string", "description": "of the page before"})
SIZE_TEXT: Final = ParsedText(
    _parse_size, {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 999_999_999}, EMPTY]}
)


class FilesQuery(QueryModel):
    """Query of a list of files, as either dialect spells it."""

    page_size: Annotated[int, SIZE_TEXT, Field(description="length of a page")] = MAX_LIMIT
    page_token: Annotated[tuple[float, str] | None, _CURSOR_TEXT] = None
    cursor: Annotated[tuple[float, str] | None, _CURSOR_TEXT] = None


@dataclass(frozen=True, kw_only=True)
class FileView:
    """A file, as one client gets it."""

    file: UploadedFile
    expires_at: float
    base: str
    """Where the client reaches us, without a trailing slash."""


@dataclass(frozen=True, kw_only=True)
class FilePage:
    """One page of a list of files."""

    files: tuple[FileView, ...]
    next_cursor: str | None
    base: str


@dataclass(frozen=True, kw_only=True)
class SharedFiles:
    """What the file routes of dialects have in common."""

    files: FileService
    public_base: Callable[[], str | None]

    @classmethod
    def from_services(cls, services: Services) -> SharedFiles:
        return cls(files=services.files, public_base=lambda: services.address.base)

    def view(self, request: Request, file: UploadedFile) -> FileView:
        return FileView(file=file, expires_at=self.files.expires_at(file), base=self.base_for(request))

    def base_for(self, request: Request) -> str:
        return own_base_url(request, self.public_base())

    # -- taking in

    async def store_form(
        self, request: Request, field: str, read_details: Callable[[FormData, UploadFile], FileDetails] | None = None
    ) -> FileView:
        """Store the file in a part of a form; a part `metadata` with a JSON object is kept with it.

        read_details: for a form that says something else about its file. Raises `ApiError`.
        """
        media_type, options = media_type_of(request)
        if media_type != "multipart/form-data":
            message = f"Send the file as multipart/form-data, in the part {field}."
            raise ApiError("invalid_request", message, field="Content-Type")
        form = await read_form(request, options, self.files.max_bytes + FORM_OVERHEAD_BYTES)
        try:
            part = form.get(field)
            if not isinstance(part, UploadFile):
                message = f"{field} must be one file: give the part a file name."
                raise ApiError("invalid_request", message, field=field)
            details = read_details(form, part) if read_details else await _read_details(form, part)
            return await self._store(request, UploadedChunks(part), details)
        finally:
            await form.close()

    async def store_body(self, request: Request, details: FileDetails) -> FileView:
        """Store the body of a request as a file. Raises `ApiError`."""
        async with aclosing(BoundedRequest(request, self.files.max_bytes).stream()) as chunks:
            return await self._store(request, chunks, details)

    async def store_bytes(self, request: Request, data: bytes, details: FileDetails) -> FileView:
        """Store bytes as a file. Raises `ApiError`."""
        return await self._store(request, _single_chunk(data), details)

    async def store_url(self, request: Request, url: str, details: FileDetails) -> FileView:
        """Download a file, and store it. Raises `ApiError`."""
        return self.view(request, await self.files.store_url(principal_of(request).owner, url, details))

    async def _store(self, request: Request, chunks: AsyncIterable[bytes], details: FileDetails) -> FileView:
        return self.view(request, await self.files.store(principal_of(request).owner, chunks, details))

    # -- showing

    async def read_page(self, request: Request) -> FilePage:
        """Return the page of the caller's files that a request asks for."""
        query = FilesQuery.read(request)
        before = query.page_token or query.cursor
        found = await self.files.list_newest(principal_of(request).owner, before=before, limit=query.page_size + 1)
        rows, cursor = split_page(found, query.page_size, lambda file: (file.created_at, file.id))
        views = tuple(self.view(request, file) for file in rows)
        return FilePage(files=views, next_cursor=cursor, base=self.base_for(request))

    async def read_file(self, request: Request) -> FileView:
        """Return the caller's file that the path names. Raises `ApiError("not_found")`."""
        return self.view(request, await self.files.get(principal_of(request).owner, request.path_params["id"]))

    async def delete_file(self, request: Request) -> None:
        """Delete the caller's file that the path names. Raises `ApiError("not_found")`."""
        await self.files.delete(principal_of(request).owner, request.path_params["id"])


async def _single_chunk(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _read_details(form: FormData, part: UploadFile) -> FileDetails:
    return FileDetails(name=part.filename or "", metadata=await _read_metadata(form.get("metadata")))


async def _read_metadata(sent: UploadFile | str | None) -> Mapping[str, Any]:
    """Return the metadata of a part, which JavaScript clients send as a file. Raises `ApiError`."""
    body = await sent.read(MAX_TEXT_BYTES + 1) if isinstance(sent, UploadFile) else (sent or "").encode()
    if len(body) > MAX_TEXT_BYTES:
        raise ApiError("payload_too_large", f"metadata is larger than {MAX_TEXT_BYTES:,} bytes: send less.")
    found = parse_json(body) if body else {}
    if not isinstance(found, dict):
        raise ApiError("invalid_request", 'metadata must be a JSON object: send {"key": "value"}.', field="metadata")
    return found
