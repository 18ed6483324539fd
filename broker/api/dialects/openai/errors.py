"""The error shape of the OpenAI API, with the broker's code in `code`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field
from starlette.requests import HTTPConnection
from starlette.responses import Response

from broker.api.http.responses import error_headers, json_response
from broker.api.shared.field_names import respell_names
from broker.api.shared.held_streams import event_bytes
from broker.api.shared.models import SnakeResponseModel
from broker.errors import ApiError, FailedTask
from broker.presenter import Absent

SPELLING: Final[Mapping[str, str]] = {
    "aspectRatio": "size",
    "resolution": "size",
    "outputFormat": "output_format",
    "numberOfImages": "n",
    "imageUrls": "image",
    "images": "image",
    "callbackUrl": "callback_url",
}
"""Names of fields in the native API → in this one."""
CHAT_PATH: Final = "/v1/chat/completions"
CHAT_SPELLING: Final[Mapping[str, str]] = {
    **SPELLING,
    "aspectRatio": "image_config.aspect_ratio",
    "resolution": "image_config.image_size",
    "image": "messages",
    "imageUrls": "messages",
    "topP": "top_p",
}
"""The same for chats."""
_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_FIRST_API_STATUS: Final = 424


class OpenAIErrorDetail(SnakeResponseModel):
    message: str
    type: str
    param: str | None
    code: str
    retryable: bool
    billed: Annotated[str | Absent, Field(description="of a failed order: yes, no or unknown")] = None
    task_id: str | Absent = None


class OpenAIError(SnakeResponseModel):
    """The body of every error."""

    error: OpenAIErrorDetail


def error_detail(error: ApiError, spelling: Mapping[str, str] = SPELLING) -> OpenAIErrorDetail:
    failed = error if isinstance(error, FailedTask) else None
    return OpenAIErrorDetail(
        message=respell_names(error.message, spelling),
        type=_error_type(error.status),
        param=spelling.get(error.field, error.field) if error.field else None,
        code=error.code,
        retryable=error.retryable,
        billed=failed.billed if failed else None,
        task_id=failed.task_id if failed else None,
    )


def error_document(error: ApiError, spelling: Mapping[str, str] = SPELLING) -> dict[str, Any]:
    return OpenAIError(error=error_detail(error, spelling)).to_document()


def error_event(error: ApiError) -> bytes:
    """Return the error as an event of a stream that has begun."""
    return event_bytes(error_document(error))


def render_error(request: HTTPConnection, error: ApiError, headers: Mapping[str, str]) -> Response:
    spelling = CHAT_SPELLING if request.url.path == CHAT_PATH else SPELLING
    return json_response(error_document(error, spelling), error.status, {**error_headers(error), **headers})


def _error_type(status: int) -> str:
    default = "api_error" if status >= _FIRST_API_STATUS else "invalid_request_error"
    return _TYPES.get(status, default)
