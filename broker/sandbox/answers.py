"""What goes back over the wire: envelopes, streamed pictures, and lines that go dead."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

CHUNK = 64 * 1024


def plain(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: a prompt may hold half a surrogate pair, which UTF-8 cannot."""
    return Response(json.dumps(body), status, dict(headers or {}), media_type="application/json")


def envelope(code: int, msg: str, data: Any = None) -> dict[str, Any]:
    return {"code": code, "msg": msg, "data": data}


def reply(code: int, msg: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal. HTTP says 200 unless told otherwise: with kie.ai the code in the body decides."""
    return plain(envelope(code, msg), status=status, headers=headers)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Image bytes, in pieces so that a big one is never copied whole."""

    pieces: tuple[bytes | memoryview, ...]
    media_type: str

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))

    def chunks(self) -> Iterator[bytes]:
        for piece in self.pieces:
            view = memoryview(piece)
            yield from (bytes(view[at : at + CHUNK]) for at in range(0, len(view), CHUNK))


def stream(picture: Picture, media_type: str | None = None) -> Response:
    headers = {"content-length": str(picture.size)}
    return StreamingResponse(_steadily(picture), headers=headers, media_type=media_type or picture.media_type)


async def _steadily(picture: Picture) -> Any:
    for chunk in picture.chunks():
        yield chunk


class HangUp(Response):
    """Closes the line: with nothing said, or halfway through the picture it has announced.

    The server has to put `hang_up` into the request's state, as `serve_sandbox` does.
    """

    def __init__(self, picture: Picture | None = None) -> None:
        super().__init__()
        self._picture = picture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._picture:
            await self._begin(self._picture, send)
        scope["state"]["hang_up"]()
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _begin(self, picture: Picture, send: Send) -> None:
        headers = [(b"content-type", picture.media_type.encode()), (b"content-length", b"%d" % picture.size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        half = b"".join(picture.pieces)[: picture.size // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
