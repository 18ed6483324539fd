"""Responses: envelopes, streamed images, and connections that close early."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

CHUNK = 64 * 1024


def json_response(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return JSON in ASCII: a prompt may contain a lone surrogate, which UTF-8 cannot encode."""
    return Response(json.dumps(body), status, dict(headers or {}), media_type="application/json")


def envelope(code: int, msg: str, data: Any = None) -> dict[str, Any]:
    return {"code": code, "msg": msg, "data": data}


def envelope_response(code: int, msg: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error envelope, by default with HTTP 200: with kie.ai the code in the body decides."""
    return json_response(envelope(code, msg), status=status, headers=headers)


@dataclass(frozen=True, kw_only=True)
class ImageBytes:
    """Image bytes in pieces, so that a big image is never copied."""

    pieces: tuple[bytes | memoryview, ...]
    media_type: str

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))

    def chunks(self) -> Iterator[bytes]:
        for piece in self.pieces:
            view = memoryview(piece)
            yield from (bytes(view[at : at + CHUNK]) for at in range(0, len(view), CHUNK))


def stream(image: ImageBytes, media_type: str | None = None) -> Response:
    headers = {"content-length": str(image.size)}
    return StreamingResponse(_send_chunks(image), headers=headers, media_type=media_type or image.media_type)


async def _send_chunks(image: ImageBytes) -> Any:
    for chunk in image.chunks():
        yield chunk


class HangUp(Response):
    """Close the connection: without a response, or halfway through the image.

    The server has to put `hang_up` into the request's state, as `serve_sandbox` does.
    """

    def __init__(self, image: ImageBytes | None = None) -> None:
        super().__init__()
        self._picture = image

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._picture:
            await self._send_half(self._picture, send)
        scope["state"]["hang_up"]()
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _send_half(self, image: ImageBytes, send: Send) -> None:
        headers = [(b"content-type", image.media_type.encode()), (b"content-length", b"%d" % image.size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        half = b"".join(image.pieces)[: image.size // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
