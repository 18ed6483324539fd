"""Faults of result downloads: each may replace the response."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
from anyio import to_thread
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from broker.sandbox import painter
from broker.sandbox.answers import HangUp, ImageBytes, stream
from broker.sandbox.faults import Fault, Faults, select_faults


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
    image: Callable[[], Awaitable[ImageBytes]]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><script>alert(1)</script></svg>'
METADATA = "http://169.254.169.254/latest/meta-data/"
DRIP_PIECES = 20

DownloadFault = Callable[[float, DownloadContext], Awaitable[Response | None]]


def not_found() -> Response:
    return HTMLResponse("<html><body><h1>404 Not Found</h1></body></html>", 404)


async def _respond_gone(_value: float, _context: DownloadContext) -> Response:
    return not_found()


async def _gone_once(value: float, context: DownloadContext) -> Response | None:
    return not_found() if context.earlier < value else None


async def _respond_expiring(_value: float, context: DownloadContext) -> Response | None:
    return None if context.route == "fresh" else not_found()


async def _respond_partial(value: float, context: DownloadContext) -> Response | None:
    return not_found() if context.index == int(value) - 1 else None


async def _respond_html(_value: float, _context: DownloadContext) -> Response:
    return HTMLResponse("<html><body>Please come back later.</body></html>")


async def _respond_truncated(value: float, context: DownloadContext) -> Response | None:
    return HangUp(await context.image()) if not value or context.earlier < value else None


async def _respond_slowly(value: float, context: DownloadContext) -> Response:
    image = await context.image()
    headers = {"content-length": str(image.size)}
    return StreamingResponse(_send_slowly(image, value / DRIP_PIECES), headers=headers, media_type=image.media_type)


async def _send_slowly(image: ImageBytes, pause: float) -> Any:
    whole = b"".join(image.pieces)
    step = len(whole) // DRIP_PIECES + 1
    for at in range(0, len(whole), step):
        await anyio.sleep(pause)
        yield whole[at : at + step]


async def _respond_wrong_type(_value: float, context: DownloadContext) -> Response:
    return stream(await context.image(), "application/octet-stream")


async def _respond_redirect(_value: float, context: DownloadContext) -> Response | None:
    return RedirectResponse(f"{context.base}/moved/{context.name}", 302) if context.route == "p" else None


async def _redirect_private(_value: float, _context: DownloadContext) -> Response:
    return RedirectResponse(METADATA, 302)


async def _respond_bomb(_value: float, _context: DownloadContext) -> Response:
    return Response(await to_thread.run_sync(painter.bomb), media_type="image/png")


async def _respond_svg(_value: float, _context: DownloadContext) -> Response:
    return Response(SVG, media_type="image/svg+xml")


async def _respond_corrupt(_value: float, context: DownloadContext) -> Response:
    image = await context.image()
    whole, half = b"".join(image.pieces), image.size // 2
    noise = hashlib.shake_256(b"rubbish").digest(image.size - half)
    return Response(whole[:half] + noise, media_type=image.media_type)


DOWNLOAD_FAULTS: dict[Fault, DownloadFault] = {
    Fault.PARTIAL: _respond_partial,
    Fault.GONE: _respond_gone,
    Fault.GONE_ONCE: _gone_once,
    Fault.EXPIRING: _respond_expiring,
    Fault.HTML: _respond_html,
    Fault.TRUNCATED: _respond_truncated,
    Fault.DRIP: _respond_slowly,
    Fault.WRONGTYPE: _respond_wrong_type,
    Fault.REDIRECT: _respond_redirect,
    Fault.REDIRECT_PRIVATE: _redirect_private,
    Fault.BOMB: _respond_bomb,
    Fault.SVG: _respond_svg,
    Fault.CORRUPT: _respond_corrupt,
}


async def respond_to_download(context: DownloadContext, faults: Faults) -> Response:
    """Return the response to a download: that of the first fault that has one, or the image."""
    for fault in select_faults(faults, DOWNLOAD_FAULTS):
        if answer := await DOWNLOAD_FAULTS[fault](faults[fault], context):
            return answer
    return stream(await context.image())
