"""The address of the broker itself: a short page for browsers, a JSON object for programs.

It is open to all, also through a tunnel or proxy, and the same for all.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Annotated, Final, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import TEXT, Endpoint, Parameter, SuccessResponse
from broker.api.http.responses import json_response, requested_language
from broker.i18n import Messages
from broker.presenter import ResponseModel

_ACCEPTED: Final = re.compile(r"\s*([a-z]+/[a-z+]+)\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?", flags=re.IGNORECASE)
_MAX_ACCEPT_CHARACTERS: Final = 500
_HEADERS: Final = {"cache-control": "no-store", "vary": "Accept, Accept-Language"}


class RootResponse(ResponseModel):
    service: Literal["nano-banana-broker"]
    message: Annotated[str, Field(description="what runs here, in the language of Accept-Language")]
    pretend_pictures: Annotated[bool, Field(description="no provider is configured: the sandbox makes the images")]
    docs: Annotated[str, Field(description="a page with the API")]
    openapi: Annotated[str, Field(description="the API as a document")]
    health: str


@dataclass(frozen=True, kw_only=True)
class RootRoutes:
    messages: Messages
    pretend_pictures: bool
    page: Template
    """Of the HTML page."""

    @classmethod
    def load(cls, messages: Messages, *, pretend_pictures: bool) -> RootRoutes:
        """Read the page from the package."""
        page = Template(resources.files("broker").joinpath("web/root.html").read_text("utf-8"))
        return cls(messages=messages, pretend_pictures=pretend_pictures, page=page)

    def endpoints(self) -> list[Endpoint]:
        shown = SuccessResponse(
            text="HTML for clients that prefer it, else JSON",
            content={"application/json": RootResponse, "text/html": TEXT},
            headers={"Vary": (True, "Accept, Accept-Language")},
        )
        language = Parameter("Accept-Language", "header", "zh, en or ru: the language of sentences")
        return [
            Endpoint(
                "GET",
                "/",
                self.show_root,
                access="public",
                tag="operators",
                parameters=(language,),
                responses={200: shown},
            )
        ]

    async def show_root(self, request: Request) -> Response:
        """Show what runs here, and where it is documented."""
        language = requested_language(request)
        keys = ["root_about", *(["root_pretend"] if self.pretend_pictures else [])]
        sentences = [self.messages.get(key, language) for key in keys]
        if prefers_html(",".join(request.headers.getlist("accept"))):
            body = self.page.substitute(
                language=language,
                paragraphs="\n      ".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences),
                documentation=html.escape(self.messages.get("root_docs", language)),
            )
            return Response(body, media_type="text/html", headers=_HEADERS)
        response = RootResponse(
            service="nano-banana-broker",
            message=("" if language == "zh" else " ").join(sentences),
            pretend_pictures=self.pretend_pictures,
            docs="/docs",
            openapi="/openapi.json",
            health="/health",
        )
        return json_response(response.to_document(), headers=_HEADERS)


def prefers_html(accept: str) -> bool:
    """Return whether an Accept header names HTML, as browsers do, and prefers it to JSON."""
    parts = (_ACCEPTED.fullmatch(part) for part in accept[:_MAX_ACCEPT_CHARACTERS].split(","))
    weights = {match[1].lower(): float(match[2] or 1) for match in parts if match}
    return weights.get("text/html", 0.0) > weights.get("application/json", 0.0)
