"""The API description, and a page to look at it: served by ourselves, so that it works offline and loads nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.access import Access
from broker.api.answers import Prepared, etag, matches
from broker.api.openapi import describe
from broker.errors import Refusal

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Nothing inline, nothing from elsewhere; the icons of Swagger UI are in its style."""
FILES: Final = {
    "start.js": ("start.js", "text/javascript"),
    "swagger-ui-bundle.js": ("swagger-ui/swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": ("swagger-ui/swagger-ui.css", "text/css"),
}
_KEEP: Final = {"cache-control": "private, no-cache"}


@dataclass(kw_only=True)
class Docs:
    access: Access
    version: str
    _document: Prepared | None = field(default=None, init=False)

    async def document(self, request: Request) -> Response:
        """OpenAPI 3.1 of exactly the routes that are served."""
        self.access.require(request)
        if self._document is None:
            self._document = Prepared.of(describe(request.app.routes, version=self.version), ended=True)
        return self._document.to(request)

    async def page(self, request: Request) -> Response:
        self.access.require(request)
        return Response(
            _read("page.html"), media_type="text/html", headers={"content-security-policy": POLICY, **_KEEP}
        )

    async def file(self, request: Request) -> Response:
        self.access.require(request)
        name = request.path_params["file"]
        if name not in FILES:
            raise Refusal("not_found", "The page has no such file.")
        path, media_type = FILES[name]
        headers = {"etag": _tag(path), **_KEEP}
        if matches(request, headers["etag"]):
            return Response(status_code=304, headers=headers)
        return Response(_read(path), media_type=media_type, headers=headers)


@cache
def _read(path: str) -> bytes:
    """Read once: what is inside the package does not change."""
    return resources.files("broker").joinpath("web/docs", path).read_bytes()


@cache
def _tag(path: str) -> str:
    return etag(_read(path))
