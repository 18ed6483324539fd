"""The OpenAPI document and a page that shows it, served from the package: it works offline and loads nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import (
    ETAG,
    IF_NONE_MATCH,
    NOT_MODIFIED,
    TEXT,
    Dialect,
    Endpoint,
    Parameter,
    SuccessResponse,
    json_success,
)
from broker.api.http.openapi import openapi_document
from broker.api.http.responses import CachedResponse, make_etag
from broker.errors import ApiError

CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Nothing inline, nothing from elsewhere; the icons of Swagger UI are in its style."""
ASSETS: Final = {
    "start.js": ("start.js", "text/javascript"),
    "swagger-ui-bundle.js": ("swagger-ui/swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": ("swagger-ui/swagger-ui.css", "text/css"),
}
_REVALIDATE: Final = {"cache-control": "private, no-cache"}


@dataclass(kw_only=True)
class DocsRoutes:
    version: str
    dialects: Sequence[Dialect] = ()
    """All that are mounted; set by the app, because the routes of this class are among them."""
    _document: CachedResponse | None = field(default=None, init=False)

    def endpoints(self) -> list[Endpoint]:
        endpoint = partial(Endpoint, "GET", access="admin", tag="operators")
        document = json_success("OpenAPI 3.1", {"type": "object"}, headers=ETAG)
        page = SuccessResponse(text="a page", content={"text/html": TEXT})
        asset = SuccessResponse(
            text="script or style", content={"text/javascript": TEXT, "text/css": TEXT}, headers=ETAG
        )
        return [
            endpoint(
                "/openapi.json",
                self.openapi,
                parameters=(IF_NONE_MATCH,),
                responses={200: document, 304: NOT_MODIFIED},
            ),
            endpoint("/docs", self.docs, responses={200: page}),
            endpoint(
                "/docs/{file}",
                self.get_docs_asset,
                parameters=(Parameter("file", "path", "its name"), IF_NONE_MATCH),
                responses={200: asset, 304: NOT_MODIFIED},
                errors=("not_found",),
            ),
        ]

    async def openapi(self, request: Request) -> Response:
        """Get this description."""
        if self._document is None:
            document = openapi_document(self.dialects, version=self.version)
            self._document = CachedResponse.from_document(document, ended=True)
        return self._document.respond(request)

    async def docs(self, _: Request) -> Response:
        """Show this description as a page with examples to send."""
        headers = {"content-security-policy": CONTENT_POLICY, **_REVALIDATE}
        return Response(_read_file("page.html"), media_type="text/html", headers=headers)

    async def get_docs_asset(self, request: Request) -> Response:
        """Get a script or style of the page."""
        name = request.path_params["file"]
        if name not in ASSETS:
            raise ApiError("not_found", "The page has no such file.")
        return _load_asset(*ASSETS[name]).respond(request)


@cache
def _load_asset(path: str, media_type: str) -> CachedResponse:
    """Read a file once: those of the package do not change."""
    body = _read_file(path)
    tag = make_etag(body)
    return CachedResponse(body=body, tag=tag, fixed=_REVALIDATE, media_type=media_type)


def _read_file(path: str) -> bytes:
    return resources.files("broker").joinpath("web/docs", path).read_bytes()
