"""Errors in kie.ai's shape: the code is in the body, and the HTTP status is mostly 200."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.requests import HTTPConnection
from starlette.responses import Response

from broker.api.dialects.kie.schemas import KieError
from broker.api.http.responses import error_headers, json_response
from broker.api.shared.field_names import respell_names
from broker.errors import ApiError

SPELLING: Final = {"aspectRatio": "aspect_ratio", "imageUrls": "image_urls", "outputFormat": "output_format"}
"""Names of fields in the native API → in sentences of this one."""
INVALID: Final = 422
INVALID_UPLOAD: Final = 400
CODES: Final[Mapping[str, int]] = {
    "unauthorized": 401,
    "forbidden": 401,
    "not_found": 404,
    "task_expired": 404,
    "rate_limited": 429,
    "quota_exceeded": 433,
    "storage_full": 455,
    "internal_error": 500,
    "unavailable": 500,
}
"""kie.ai's code of each of ours; 422 of the others, which are about the order. 500 leaves open whether it was taken."""
_CODES_IN_SUCCESS: Final = frozenset({404, INVALID, INVALID_UPLOAD})
"""Codes that come with HTTP 200."""


def render_error(request: HTTPConnection, error: ApiError, headers: Mapping[str, str]) -> Response:
    """Return `{"code", "msg", "data": null}`, of an upload also `"success": false`."""
    path = request.url.path
    is_upload, is_download = path.startswith("/api/file-"), path.startswith("/api/files/")
    code = CODES.get(error.code, INVALID_UPLOAD if is_upload else INVALID)
    is_in_success = code in _CODES_IN_SUCCESS and error.status not in {405, 413} and not is_download
    return error_answer(
        code,
        respell_names(error.message, SPELLING),
        200 if is_in_success else error.status,
        {**error_headers(error), **headers},
        success=False if is_upload else None,
    )


def error_answer(
    code: int,
    message: str,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    success: bool | None = None,
) -> Response:
    return json_response(KieError(code=code, msg=message, data=None, success=success).to_document(), status, headers)
