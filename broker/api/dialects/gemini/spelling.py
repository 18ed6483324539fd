"""How an answer spells its images: `inlineData` for SDKs, and `inline_data` for the samples of a relay.

The samples read `inline_data.data` in Python, and search for `"data": "…"` with one blank in a shell. So the copy in
snake_case has the blank, and the one in camelCase has not: the search finds one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from starlette.requests import HTTPConnection

from broker.api.shared.inline_images import InlineImage
from storage.images import StoredImage

Spelling = Literal["both", "camel", "snake"]

SDK_HEADER: Final = "x-goog-api-client"


@dataclass(frozen=True, kw_only=True)
class AnswerStyle:
    """How one client gets its answer."""

    spelling: Spelling
    is_image_first: bool
    """The image comes before the texts; otherwise the parts are in the order of the provider."""


def is_sdk(request: HTTPConnection) -> bool:
    """Return whether the client is an SDK of Google's."""
    return SDK_HEADER in request.headers


def is_gemini_client(request: HTTPConnection) -> bool:
    """Return whether a request to a shared or unknown path comes from a client of this dialect."""
    if request.url.path.startswith(("/v1beta/", "/upload/")):
        return True
    return is_sdk(request) or "x-goog-api-key" in request.headers or "key" in request.query_params


def choose_style(request: HTTPConnection, spelling: Spelling, *, asks_for_text: bool) -> AnswerStyle:
    """Return the style for a client. spelling: for clients that are not SDKs."""
    is_from_sdk = is_sdk(request)
    return AnswerStyle(
        spelling="camel" if is_from_sdk else spelling,
        is_image_first=not (is_from_sdk and asks_for_text),
    )


def spell_image(image: StoredImage, spelling: Spelling) -> dict[str, Any]:
    """Return the part of an image."""
    camel = {"inlineData": {"mimeType": image.media_type, "data": InlineImage(image=image)}}
    snake = {"inline_data": {"mime_type": image.media_type, "data": InlineImage(image=image, is_spaced=True)}}
    match spelling:
        case "camel":
            return camel
        case "snake":
            return snake
        case "both":
            return snake | camel
