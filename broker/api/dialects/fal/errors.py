"""Errors in fal's shape: `detail`, a list of what is wrong with a request or a sentence, and a type in a header."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Final

from starlette.requests import HTTPConnection
from starlette.responses import Response

from broker.api.dialects.fal.schemas import SPELLING, FalError
from broker.api.http.answers import tracked_answer
from broker.api.http.responses import error_headers, json_response
from broker.api.shared.field_names import respell_names
from broker.errors import ApiError, FailedTask, FieldError
from broker.notifications.formats.fal import FalDetail, failure_detail, failure_status, failure_type

REQUEST_ID: Final = "x-fal-request-id"
ERROR_TYPE: Final = "x-fal-error-type"
RETRYABLE: Final = "x-fal-retryable"
INVALID_STATUS: Final = 422

REPEATED_STATUS: Final = 429
"""Repeated by all clients, in steps from a tenth of a second; the one for Python does not repeat our 503."""

TIMEOUT_TYPE: Final = "x-fal-request-timeout-type"
"""With the value `user`, no client repeats the request."""

_STATUS_OF: Final = {400: INVALID_STATUS, 503: REPEATED_STATUS}
_QUOTA_STATUS: Final = 403
"""Of an exhausted balance; clients repeat a request after 429 ten times."""
_TYPE_OF: Final = {
    "invalid_image": "image_load_error",
    "too_many_images": "too_long",
    "unauthorized": "authorization_error",
    "not_found": "not_found",
    "task_not_found": "not_found",
    "unavailable": "internal_error",
    "internal_error": "internal_error",
}
_OTHER_TYPE: Final = "value_error"
_WORST_CASE: Final = frozenset({424, 500})
"""Statuses of a result that say nothing about a new order."""


class StartTimeout(ApiError):
    """The request did not start within the time that its client gave it, and is canceled."""

    def __init__(self, seconds: float) -> None:
        message = (
            f"The request did not start within {seconds:g} seconds, as it asked: it is canceled, and cost nothing."
        )
        super().__init__("unavailable", message, status=504)


def is_fal_client(request: HTTPConnection) -> bool:
    """Return whether a request comes from one of fal's clients."""
    if request.url.path.startswith("/fal/"):
        return True
    agent = request.headers.get("user-agent", "")
    return agent.startswith(("fal-client/", "@fal-ai/")) or any(name.startswith("x-fal-") for name in request.headers)


def request_id_of(request: HTTPConnection) -> str:
    """Return the id of the request that an answer is about; a new one if nothing was ordered."""
    tracked = tracked_answer(request.scope)
    named = tracked.headers.get("x-request-id") if tracked else request.scope.get("path_params", {}).get("id")
    return named if named and re.fullmatch(r"[\w.-]{1,64}", named, re.ASCII) else secrets.token_hex(16)


def render_error(request: HTTPConnection, error: ApiError, headers: Mapping[str, str]) -> Response:
    if isinstance(error, FailedTask):
        return _render_failure(request, error, headers)
    status = _QUOTA_STATUS if error.code == "quota_exceeded" else _STATUS_OF.get(error.status, error.status)
    kind, message = _TYPE_OF.get(error.code, _OTHER_TYPE), _in_our_terms(error.message)
    if isinstance(error, StartTimeout):
        kind, headers = "request_timeout", {TIMEOUT_TYPE: "user", **headers}
    if status == INVALID_STATUS:
        listed = error.details or (FieldError(field=error.field or "", message=error.message),)
        body = FalError(detail=[_detail(error.code, kind, one) for one in listed], message=message)
    else:
        body = FalError(detail=message, message=message, error_type=kind)
    fixed = {
        REQUEST_ID: request_id_of(request),
        ERROR_TYPE: kind,
        RETRYABLE: str(error.retryable).lower(),
        **error_headers(error),
    }
    return json_response(body.to_document(), status, {**fixed, **headers})


def _render_failure(request: HTTPConnection, error: FailedTask, headers: Mapping[str, str]) -> Response:
    """Return the failure of a task: an order may be repeated where that is free, a result is final."""
    status = failure_status(error.code, error.billed)
    if request.scope["method"] == "POST" and status in _WORST_CASE:
        status = error.status
    detail = failure_detail(error.code, error.message, billed=error.billed, retryable=error.retryable)
    fixed = {
        REQUEST_ID: error.task_id,
        ERROR_TYPE: failure_type(error.code),
        RETRYABLE: str(error.retryable).lower(),
        **error_headers(error),
    }
    body = FalError(detail=[detail], message=error.message)
    return json_response(body.to_document(), status, {**fixed, **headers})


def _detail(code: str, kind: str, error: FieldError) -> FalDetail:
    name = SPELLING.get(error.field, error.field)
    where = "query" if name == "fal_webhook" else "body"
    is_missing = error.message.endswith("field required.")
    return FalDetail(
        loc=[where, *([name] if name and name != "body" else [])],
        msg=_in_our_terms(error.message),
        type="missing" if is_missing else kind,
        ctx={"code": code},
    )


def _in_our_terms(sentence: str) -> str:
    """Return a sentence of the planner with fal's names of the fields."""
    return respell_names(sentence, SPELLING)
