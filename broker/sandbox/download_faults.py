"""Faults of result downloads."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import anyio
from anyio import to_thread
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from broker.sandbox import painter
from broker.sandbox.answers import HangUp
from broker.sandbox.faults import Fault, Faults

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><script>alert(1)</script></svg>'
METADATA_URL = "http://169.254.169.254/latest/meta-data/"
DRIP_PIECES = 20


@dataclass(frozen=True, kw_only=True)
class DownloadContext:
    """A download of a result."""

    route: str
    """`p` (result URL), `moved` (after a redirect) or `fresh` (from download-url)."""
    name: str
    index: int
    base: str
    earlier: int
    """Earlier downloads of this URL."""
    media_type: str
    paint: Callable[[], Awaitable[bytes]]


def not_found() -> Response:
    return HTMLResponse("<html><body><h1>404 Not Found</h1></body></html>", 404)


async def respond_to_download(context: DownloadContext, faults: Faults) -> Response:
    """Return the response to a download: that of the first fault that has one, or the image."""
    if _is_missing(context, faults):
        return not_found()
    for fault, value in faults.items():
        if response := await _faulty_response(context, fault, value):
            return response
    return Response(await context.paint(), media_type=context.media_type)


def _is_missing(context: DownloadContext, faults: Faults) -> bool:
    return (
        Fault.GONE in faults
        or (Fault.EXPIRING in faults and context.route != "fresh")
        or context.earlier < faults.get(Fault.GONE_ONCE, 0)
        or context.index + 1 == faults.get(Fault.PARTIAL)
    )


async def _faulty_response(context: DownloadContext, fault: str, value: float) -> Response | None:
    response: Response | None = None
    match fault:
        case Fault.HTML:
            response = HTMLResponse("<html><body>Please come back later.</body></html>")
        case Fault.TRUNCATED if not value or context.earlier < value:
            response = HangUp(await context.paint(), media_type=context.media_type)
        case Fault.DRIP:
            image = await context.paint()
            headers = {"content-length": str(len(image))}
            chunks = _send_slowly(image, value / DRIP_PIECES)
            response = StreamingResponse(chunks, headers=headers, media_type=context.media_type)
        case Fault.WRONGTYPE:
            response = Response(await context.paint(), media_type="application/octet-stream")
        case Fault.REDIRECT if context.route == "p":
            response = RedirectResponse(f"{context.base}/moved/{context.name}", 302)
        case Fault.REDIRECT_PRIVATE:
            response = RedirectResponse(METADATA_URL, 302)
        case Fault.BOMB:
            response = Response(await to_thread.run_sync(painter.bomb), media_type="image/png")
        case Fault.SVG:
            response = Response(SVG, media_type="image/svg+xml")
        case Fault.CORRUPT:
            image = await context.paint()
            noise = hashlib.shake_256(b"rubbish").digest(len(image) - len(image) // 2)
            response = Response(image[: len(image) // 2] + noise, media_type=context.media_type)
    return response


async def _send_slowly(image: bytes, pause: float) -> AsyncIterator[bytes]:
    step = len(image) // DRIP_PIECES + 1
    for at in range(0, len(image), step):
        await anyio.sleep(pause)
        yield image[at : at + step]
