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


async def _gone(_value: float, _scene: DownloadContext) -> Response:
    return not_found()


async def _gone_once(value: float, context: DownloadContext) -> Response | None:
    return not_found() if context.earlier < value else None


async def _expiring(_value: float, context: DownloadContext) -> Response | None:
    return None if context.route == "fresh" else not_found()


async def _partial(value: float, context: DownloadContext) -> Response | None:
    return not_found() if context.index == int(value) - 1 else None


async def _html(_value: float, _scene: DownloadContext) -> Response:
    return HTMLResponse("<html><body>Please come back later.</body></html>")


async def _truncated(value: float, context: DownloadContext) -> Response | None:
    return HangUp(await context.image()) if not value or context.earlier < value else None


async def _drip(value: float, context: DownloadContext) -> Response:
    image = await context.image()
    headers = {"content-length": str(image.size)}
    return StreamingResponse(_trickle(image, value / DRIP_PIECES), headers=headers, media_type=image.media_type)


async def _trickle(image: ImageBytes, pause: float) -> Any:
    whole = b"".join(image.pieces)
    step = len(whole) // DRIP_PIECES + 1
    for at in range(0, len(whole), step):
        await anyio.sleep(pause)
        yield whole[at : at + step]


async def _wrongtype(_value: float, context: DownloadContext) -> Response:
    return stream(await context.image(), "application/octet-stream")


async def _redirect(_value: float, context: DownloadContext) -> Response | None:
    return RedirectResponse(f"{context.base}/moved/{context.name}", 302) if context.route == "p" else None


async def _redirect_private(_value: float, _scene: DownloadContext) -> Response:
    return RedirectResponse(METADATA, 302)


async def _bomb(_value: float, _scene: DownloadContext) -> Response:
    return Response(await to_thread.run_sync(painter.bomb), media_type="image/png")


async def _svg(_value: float, _scene: DownloadContext) -> Response:
    return Response(SVG, media_type="image/svg+xml")


async def _corrupt(_value: float, context: DownloadContext) -> Response:
    image = await context.image()
    whole, half = b"".join(image.pieces), image.size // 2
    noise = hashlib.shake_256(b"rubbish").digest(image.size - half)
    return Response(whole[:half] + noise, media_type=image.media_type)


DOWNLOAD_FAULTS: dict[Fault, DownloadFault] = {
    Fault.PARTIAL: _partial,
    Fault.GONE: _gone,
    Fault.GONE_ONCE: _gone_once,
    Fault.EXPIRING: _expiring,
    Fault.HTML: _html,
    Fault.TRUNCATED: _truncated,
    Fault.DRIP: _drip,
    Fault.WRONGTYPE: _wrongtype,
    Fault.REDIRECT: _redirect,
    Fault.REDIRECT_PRIVATE: _redirect_private,
    Fault.BOMB: _bomb,
    Fault.SVG: _svg,
    Fault.CORRUPT: _corrupt,
}


async def respond_to_download(context: DownloadContext, faults: Faults) -> Response:
    """Return the response to a download: that of the first fault that has one, or the image."""
    for fault in select_faults(faults, DOWNLOAD_FAULTS):
        if answer := await DOWNLOAD_FAULTS[fault](faults[fault], context):
            return answer
    return stream(await context.image())
