"""Images by name: bytes of a fixed type that no browser takes for anything else, thumbnails, and sidecars."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.api.access import Access
from broker.api.answers import answer, matches
from broker.broker import Broker
from broker.errors import Refusal
from storage.blobs import BlobMissing, Reading
from storage.images import Kind, StoredImage
from uploads.thumbnails import THUMBNAIL_SIZES

_NAME: Final = re.compile(r"(generated|reference)_[0-9a-f]{32}\.(png|jpg|webp)")
_TYPES: Final = frozenset({"image/png", "image/jpeg", "image/webp"})
_SIZE: Final = re.compile(r"[0-9]{1,6}")
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")

GUARDS: Final = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
    "referrer-policy": "no-referrer",
}
"""On every answer that carries an image: it is never a page, whatever bytes it has."""


_ASK_AGAIN: Final = {"cache-control": "private, no-cache"}
_SIZES: Final = ", ".join(str(size) for size in THUMBNAIL_SIZES)

LINK_SECONDS: Final = 600
_REDIRECT: Final = {"cache-control": f"private, max-age={LINK_SECONDS // 2}"}


@dataclass(frozen=True, kw_only=True)
class ImageDoor:
    broker: Broker
    access: Access

    async def result(self, request: Request) -> Response:
        return await self._serve(request, "result")

    async def reference(self, request: Request) -> Response:
        return await self._serve(request, "reference")

    async def about_result(self, request: Request) -> Response:
        return await self._about(request, "result")

    async def about_reference(self, request: Request) -> Response:
        return await self._about(request, "reference")

    async def _about(self, request: Request, kind: Kind) -> Response:
        """Names of images stand in pages; the prompt is for those who may list the tasks, too."""
        self.access.require(request)
        image = await self._named(request.path_params["name"], kind)
        tasks = await self.broker.origin(image)
        if not tasks:
            raise _missing()
        return answer({"success": True, "data": self.broker.showing.sidecar(image, tasks)})

    async def _serve(self, request: Request, kind: Kind) -> Response:
        wish = _wish(request.query_params.get("size"))
        image = await self._named(request.path_params["name"], kind)
        if wish is None:
            return await self._send(request, image, self._headers(image, image))
        small = await self.broker.thumbnails.find_or_make(image, wish)
        if small is not None:
            return await self._send(request, small, self._headers(small, image))
        # the next one who asks may get a small one
        return await self._send(request, image, {**self._headers(image, image), **_ASK_AGAIN})

    async def _send(self, request: Request, image: StoredImage, headers: dict[str, str]) -> Response:
        if matches(request, headers["etag"]):
            return Response(status_code=304, headers=headers)
        if link := await self._link(image):
            return Response(status_code=307, headers={**GUARDS, **_REDIRECT, "location": link})
        start, stop = _range(request, image.size, headers["etag"])
        if start >= stop:
            return Response(status_code=416, headers={**headers, "content-range": f"bytes */{image.size}"})
        part = (start, stop) != (0, image.size)
        if part:
            headers["content-range"] = f"bytes {start}-{stop - 1}/{image.size}"
        headers["content-length"] = str(stop - start)
        return _Bytes(request, await self._open(image, start, stop), 206 if part else 200, headers)

    async def _named(self, name: str, kind: Kind) -> StoredImage:
        image = await self.broker.images.named(name) if _NAME.fullmatch(name) else None
        if image is None or image.kind != kind:
            raise _missing()
        return image

    async def _link(self, image: StoredImage) -> str | None:
        """Return the store's own link to a result, if the operator wants that. Providers may not follow it."""
        if image.kind != "result":
            return None
        return await self.broker.blobs.link(image.blob, LINK_SECONDS)

    async def _open(self, image: StoredImage, start: int, stop: int) -> Reading:
        try:
            return await self.broker.blobs.open(image.blob, start, stop)
        except BlobMissing as error:
            raise _missing() from error

    def _headers(self, image: StoredImage, source: StoredImage) -> dict[str, str]:
        """Kept by browsers as long as we keep it ourselves, and not longer. source: a thumbnail's image."""
        left = int(source.created_at + self.broker.policy.retention_seconds - self.broker.clock.now())
        return {
            **GUARDS,
            "content-type": image.media_type if image.media_type in _TYPES else "application/octet-stream",
            "content-disposition": f'inline; filename="{image.name}"',
            "cache-control": f"private, max-age={left}, immutable" if left > 0 else "private, no-cache",
            "etag": f'"{image.sha256}"',
            "accept-ranges": "bytes",
        }


def _wish(text: str | None) -> int | None:
    """The longest side that somebody wants."""
    if not text:
        return None
    if not _SIZE.fullmatch(text) or int(text) == 0:
        raise Refusal("invalid_request", f"size must be a number of pixels: one of {_SIZES}.", field="size")
    return int(text)


def _missing() -> Refusal:
    return Refusal("not_found", "There is no image of this name: it never was, or its retention time is over.")


def _range(request: Request, size: int, tag: str) -> tuple[int, int]:
    """The bytes [start, stop) to send; an empty range where the one asked for cannot be had.

    Several ranges, other units and those for another version of the image are answered with the whole, as HTTP allows.
    """
    wish = request.headers.get("range", "") if request.method == "GET" else ""  # RFC 9110: for GET alone
    if not wish.startswith("bytes=") or "," in wish or request.headers.get("if-range", tag) != tag:
        return 0, size
    match = _RANGE.fullmatch(wish.replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return 0, 0
    if not match[1]:
        return max(0, size - int(match[2])), size
    last = int(match[2]) if match[2] else size - 1
    return int(match[1]), min(last + 1, size)


class _Bytes(Response):
    """Chunks as they are read; the blob is closed whatever happens, and not read on for somebody who hung up."""

    def __init__(self, request: Request, reading: Reading, status: int, headers: Mapping[str, str]) -> None:
        self._request = request
        self._reading = reading
        self.status_code = status
        self.background = None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._reading):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._pass_on(send)
            await send({"type": "http.response.body", "body": b""})

    async def _pass_on(self, send: Send) -> None:
        async for chunk in self._reading:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if await self._request.is_disconnected():
                return
