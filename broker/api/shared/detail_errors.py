"""Errors as `{"detail": "<sentence>"}`, the shape of the services that were written with FastAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.requests import HTTPConnection
from starlette.responses import Response

from broker.api.http.responses import error_headers, json_response, requested_language
from broker.api.shared.field_names import respell_names
from broker.api.shared.models import SnakeResponseModel
from broker.errors import ApiError, FailedTask
from broker.i18n import Messages

SPELLING: Final = {"aspectRatio": "aspect_ratio", "numberOfImages": "number_of_images"}
"""Names of fields in the native API → in these services."""


class DetailError(SnakeResponseModel):
    """The body of every error."""

    detail: str


def render_detail_error(
    messages: Messages, request: HTTPConnection, error: ApiError, headers: Mapping[str, str]
) -> Response:
    """Return an error in the language of the request. The message of a failed task is in that language already."""
    sentence = error.message
    if not isinstance(error, FailedTask):
        sentence = messages.get(error.message_key, requested_language(request), error.message)
    sentence = respell_names(sentence, SPELLING)
    return json_response(DetailError(detail=sentence).to_document(), error.status, {**error_headers(error), **headers})
