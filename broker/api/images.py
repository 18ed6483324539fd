"""Images by name: bytes of a fixed media type, thumbnails, and metadata.

Browsers must never take an image for a page: the media type comes from the stored content, not from the request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.accel import AccelRedirects
from broker.api.http.blob_responses import BlobResponse
from broker.api.http.endpoint import (
    ETAG,
    IF_NONE_MATCH,
    NOT_MODIFIED,
    Endpoint,
    Parameter,
    SuccessResponse,
    json_success,
    principal_of,
)
from broker.api.http.query import EMPTY, ParsedText, QueryModel
from broker.api.http.responses import IMAGE_SECURITY_HEADERS, DataResponse, EncodedResponse, data_response, etag_matches
from broker.clock import Clock
from broker.errors import ApiError
from broker.presenter import ImageMetadata, TaskPresenter
from broker.tasks.queries import TaskQueries
from broker.thumbnails import Thumbnails
from storage.blobs.store import BlobMissing, BlobStore
from storage.ids import IMAGE_NAME
from storage.images import Images, Kind, StoredImage
from uploads.detect import MEDIA_TYPES
from uploads.thumbnails import THUMBNAIL_SIZES

_SIZE: Final = re.compile(r"[0-9]{1,6}")
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_REVALIDATE: Final = {"cache-control": "private, no-cache"}
_SIZES: Final = ", ".join(str(size) for size in THUMBNAIL_SIZES)

LINK_SECONDS: Final = 600
_LINK_CACHE: Final = {"cache-control": f"private, max-age={LINK_SECONDS // 2}"}


def _parse_size(text: str) -> int:
    if not _SIZE.fullmatch(text) or int(text) == 0:
        raise ValueError(f"must be a number of pixels: one of {_SIZES}")
    return int(text)


_SIZE_TEXT: Final = ParsedText(_parse_size, {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 999_999}, EMPTY]})


class ImageQuery(QueryModel):
    size: Annotated[
        int | None,
        _SIZE_TEXT,
        Field(description=f"a WebP thumbnail with this longest side: the next larger of {_SIZES}"),
    ] = None


_IMAGE: Final = Parameter("name", "path", "the image's name")
_RANGE_HEADER: Final = Parameter("Range", "header", "a part of the bytes: bytes=0-99")
_BYTES: Final = {media_type: {"type": "string", "format": "binary"} for media_type in MEDIA_TYPES}
_RESPONSES: Final = {
    200: SuccessResponse(text="the image", content=_BYTES, headers=ETAG),
    206: SuccessResponse(text="the requested part", content=_BYTES, headers=ETAG),
    304: NOT_MODIFIED,
    307: SuccessResponse(text="served by the image store", headers={"Location": (True, "valid for some minutes")}),
    416: SuccessResponse(text="the image has no such part"),
}


@dataclass(frozen=True, kw_only=True)
class ImageRoutes:
    clock: Clock
    images: Images
    blobs: BlobStore
    queries: TaskQueries
    accel: AccelRedirects
    thumbnails: Thumbnails
    presenter: TaskPresenter

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints; the paths that end in `.json` come first, because the others match them, too."""
        metadata = partial(
            Endpoint,
            "GET",
            access="caller",
            tag="images",
            parameters=(_IMAGE,),
            responses={200: json_success("prompt, model, provider, tasks", DataResponse[ImageMetadata])},
            errors=("not_found",),
        )
        content = partial(
            Endpoint,
            "GET",
            access="public",
            tag="images",
            parameters=(_IMAGE, IF_NONE_MATCH, _RANGE_HEADER),
            query=ImageQuery,
            responses=_RESPONSES,
            errors=("not_found",),
            is_quiet=True,
        )
        return [
            metadata("/uploads/images/{name}.json", self.get_image_metadata),
            metadata("/uploads/references/{name}.json", self.get_reference_metadata),
            content("/uploads/images/{name}", self.get_image),
            content("/uploads/references/{name}", self.get_reference),
        ]

    async def get_image(self, request: Request) -> Response:
        """Get a generated image."""
        return await self._serve(request, "result")

    async def get_reference(self, request: Request) -> Response:
        """Get a reference image."""
        return await self._serve(request, "reference")

    async def get_image_metadata(self, request: Request) -> Response:
        """Get the metadata of a generated image."""
        return await self._metadata(request, "result")

    async def get_reference_metadata(self, request: Request) -> Response:
        """Get the metadata of a reference image."""
        return await self._metadata(request, "reference")

    async def _metadata(self, request: Request, kind: Kind) -> Response:
        """Return the metadata. It needs a key: names of images are in public pages, prompts are not."""
        image = await self._find(request.path_params["name"], kind)
        tasks = await self.queries.get_image_tasks(image, principal_of(request).scope)
        if not tasks:
            raise _not_found()
        return data_response(self.presenter.image_metadata(image, tasks))

    async def _serve(self, request: Request, kind: Kind) -> Response:
        size = ImageQuery.read(request).size
        image = await self._find(request.path_params["name"], kind)
        sent = image if size is None else await self.thumbnails.find_or_make(image, size)
        if sent is None:  # the next request may find a thumbnail
            return await self._send(request, image, {**self._headers(image, image), **_REVALIDATE})
        return await self._send(request, sent, self._headers(sent, image))

    async def _send(self, request: Request, image: StoredImage, headers: dict[str, str]) -> Response:
        """Send an image, the requested part of it, or a link into the store if the operator allows links.

        An nginx that can send the file gets its headers; it also finds the requested part.

        References are not linked: providers may not follow a redirect.
        """
        if etag_matches(request, headers["etag"]):
            return Response(status_code=304, headers=headers)
        if image.kind == "result" and (link := await self.blobs.get_link(image.blob, LINK_SECONDS)):
            return Response(status_code=307, headers={**IMAGE_SECURITY_HEADERS, **_LINK_CACHE, "location": link})
        start, stop = _requested_range(request, image.size, headers["etag"])
        if start >= stop:
            return Response(status_code=416, headers={**headers, "content-range": f"bytes */{image.size}"})
        if (uri := self.accel.find_uri(request, image.blob)) is not None:
            del headers["accept-ranges"]  # nginx adds its own
            headers["x-accel-redirect"] = uri
            return EncodedResponse(b"", 200, [(name.encode(), value.encode()) for name, value in headers.items()])
        is_part = (start, stop) != (0, image.size)
        if is_part:
            headers["content-range"] = f"bytes {start}-{stop - 1}/{image.size}"
        headers["content-length"] = str(stop - start)
        try:
            reader = await self.blobs.open(image.blob, start, stop)
        except BlobMissing as error:
            raise _not_found() from error
        status = 206 if is_part else 200
        if request.method == "HEAD":
            await reader.aclose()
            return Response(status_code=status, headers=headers)
        return BlobResponse(reader, status, headers)

    async def _find(self, name: str, kind: Kind) -> StoredImage:
        image = await self.images.get_by_name(name) if IMAGE_NAME.fullmatch(name) else None
        if image is None or image.kind != kind:
            raise _not_found()
        return image

    def _headers(self, image: StoredImage, source: StoredImage) -> dict[str, str]:
        """Let browsers keep an image as long as the broker does. source: the image of a thumbnail."""
        left = int(source.created_at + self.presenter.retention - self.clock.now())
        return {
            **IMAGE_SECURITY_HEADERS,
            "content-type": image.media_type if image.media_type in MEDIA_TYPES else "application/octet-stream",
            "content-disposition": f'inline; filename="{image.name}"',
            "cache-control": f"private, max-age={left}, immutable" if left > 0 else "private, no-cache",
            "etag": f'"{image.sha256}"',
            "accept-ranges": "bytes",
        }


def _not_found() -> ApiError:
    return ApiError("not_found", "Image not found; it may have expired.")


def _requested_range(request: Request, size: int, tag: str) -> tuple[int, int]:
    """Return the bytes [start, stop) to send; an empty range if the requested one cannot be satisfied.

    Several ranges, other units and ranges of another version of the image get the whole, as HTTP allows.
    """
    value = request.headers.get("range", "") if request.method == "GET" else ""  # RFC 9110: for GET alone
    if not value.startswith("bytes=") or "," in value or request.headers.get("if-range", tag) != tag:
        return 0, size
    match = _RANGE.fullmatch(value.replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return 0, 0
    if not match[1]:
        return max(0, size - int(match[2])), size
    last = int(match[2]) if match[2] else size - 1
    return int(match[1]), min(last + 1, size)
