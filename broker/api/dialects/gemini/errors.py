"""Errors as Google has them: `{"error": {"code", "message", "status", "details"}}`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import Field
from starlette.requests import HTTPConnection
from starlette.responses import Response

from broker.api.dialects.gemini.orders import SPELLING
from broker.api.http.responses import error_headers, json_response
from broker.api.shared.field_names import respell_names
from broker.api.shared.models import SnakeResponseModel
from broker.errors import ApiError, FailedTask

DOMAIN: Final = "nano-banana-broker"
_TYPE: Final = "type.googleapis.com/google.rpc."
_STATUS_NAMES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    409: "ABORTED",
    410: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    424: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "RESOURCE_EXHAUSTED",
}
"""Names of the closed set of google.rpc.Code."""


class GeminiErrorStatus(SnakeResponseModel):
    code: Annotated[int, Field(description="the HTTP status")]
    message: str
    status: Annotated[str, Field(description="a name of google.rpc.Code")]
    details: Annotated[
        list[dict[str, Any]],
        Field(description="ErrorInfo: reason, and metadata with retryable, billed and taskId; BadRequest; RetryInfo"),
    ]


class GeminiError(SnakeResponseModel):
    """The body of every error."""

    error: GeminiErrorStatus


def describe_error(error: ApiError) -> dict[str, Any]:
    """Return the object that stands under `error`."""
    return GeminiErrorStatus(
        code=error.status,
        message=respell_names(error.message, SPELLING),
        status=_STATUS_NAMES.get(error.status, "UNKNOWN"),
        details=[*_details(error)],
    ).to_document()


def render_error(_: HTTPConnection, error: ApiError, headers: Mapping[str, str]) -> Response:
    return json_response({"error": describe_error(error)}, error.status, {**error_headers(error), **headers})


def _details(error: ApiError) -> Iterator[dict[str, Any]]:
    metadata = {"retryable": str(error.retryable).lower()}
    if isinstance(error, FailedTask):
        metadata |= {"billed": error.billed, "taskId": error.task_id}
    yield {"@type": f"{_TYPE}ErrorInfo", "reason": error.code, "domain": DOMAIN, "metadata": metadata}
    found = [(one.field, one.message) for one in error.details] or [(error.field or "", error.message)]
    violations = [
        {"field": SPELLING.get(name, name), "description": respell_names(message, SPELLING)}
        for name, message in found
        if name
    ]
    if violations:
        yield {"@type": f"{_TYPE}BadRequest", "fieldViolations": violations}
    if error.retry_after is not None:
        yield {"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{max(1, round(error.retry_after))}s"}
