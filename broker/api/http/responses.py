"""HTTP responses: JSON, the native error shape, cached bytes, and the security headers of every response."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TypeVar

from pydantic import Field
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.accounts.quotas import QUOTA_NAMES, QuotaExceeded
from broker.api.http.connection import WHOLE_RESPONSE
from broker.api.http.identity import header_values
from broker.errors import STATUS_OF, TASK_CODES, ApiError
from broker.i18n import Language, Messages, language_of
from broker.presenter import Absent, Moment, OneOf, ResponseModel

T = TypeVar("T")

to_json_text: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""`json.dumps` with options makes an encoder for each call, which takes as long as encoding a small document."""

POLL_SECONDS: Final = "3"
"""`Retry-After` of an unfinished task."""

_ENDED_HEADERS: Final = {"cache-control": "private, no-cache", "vary": "Accept-Language"}
_UNFINISHED_HEADERS: Final = {**_ENDED_HEADERS, "retry-after": POLL_SECONDS}

_JSON_TYPE: Final = "application/json"
JSON_HEADERS: Final = ((b"content-type", _JSON_TYPE.encode()), (b"cache-control", b"no-store"))

SECURITY_HEADERS: Final = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""On every response that does not set its own: browsers must not take it for a page."""

IMAGE_SECURITY_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
}
"""On every response with an image: never a page, whatever bytes it has; other sites may show it."""


class ErrorField(ResponseModel):
    field: str
    message: str


class QuotaStatus(ResponseModel):
    """One quota of a user or an API key. The amounts of usd are in USD."""

    limit: Annotated[int | float | None, Field(description="null: no limit")]
    used: Annotated[int | float, Field(description="with what unfinished orders reserve")]
    left: int | float | None
    resets_at: Annotated[Moment | None, Field(description="of a daily quota; null for the others")]


class ExceededQuota(QuotaStatus):
    name: Annotated[str, OneOf(QUOTA_NAMES)]


class ErrorResponse(ResponseModel):
    """The one shape of every error."""

    success: Literal[False]
    error: Annotated[str, Field(min_length=1, description="a sentence in the language of Accept-Language")]
    code: Annotated[str, OneOf(tuple(sorted({*STATUS_OF, *TASK_CODES})))]
    retryable: bool
    field: str | Absent = None
    details: list[ErrorField] | Absent = None
    quota: Annotated[ExceededQuota | Absent, Field(description="of a user's quota that is exceeded")] = None


class DataResponse(ResponseModel, Generic[T]):
    """A success with one object; `DataResponse[TaskData]` is `TaskResponse` in the OpenAPI document."""

    success: Literal[True]
    data: T

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        return f"{params[0].__name__.removesuffix('Data')}Response"


def to_json(document: Any) -> bytes:
    """Encode as UTF-8; lone surrogates are escaped instead of failing the response."""
    return encode_text(to_json_text(document))


def encode_text(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def requested_language(request: HTTPConnection) -> Language:
    offered = header_values(request.scope, "accept-language")
    return language_of(",".join(offered)) if offered else "en"


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response, not to be stored by caches unless `headers` say so."""
    return json_text_response(to_json_text(document), status, headers)


def json_text_response(text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return the same of a document that is encoded already."""
    all_headers = dict(JSON_HEADERS)
    for name, value in (headers or {}).items():
        all_headers[name.lower().encode("latin-1")] = value.encode("latin-1")
    return EncodedResponse(encode_text(text), status, all_headers.items())


class EncodedResponse(Response):
    """A response whose headers are bytes already."""

    def __init__(self, body: bytes, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """headers: with names in lower case, and without Content-Length."""
        self.body = body
        self.status_code = status
        self.background = None
        self.raw_headers = [*headers, (b"content-length", b"%d" % len(body))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it in one message where the server takes that, because every layer around looks at each message."""
        if WHOLE_RESPONSE not in scope.get("extensions", ()):
            await super().__call__(scope, receive, send)
            return
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
                "body": self.body,
            }
        )
        if self.background is not None:
            await self.background()


def data_response(data: ResponseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `DataResponse` as a response."""
    return json_response(data_document(data), status, headers)


def data_document(data: ResponseModel) -> dict[str, Any]:
    """Return `DataResponse` as a JSON object."""
    return {"success": True, "data": data.to_document()}


def error_response(
    messages: Messages, request: HTTPConnection, error: ApiError, headers: Mapping[str, str]
) -> Response:
    """Return the native error shape, in the caller's language."""
    details = [ErrorField(field=one.field, message=one.message) for one in error.details]
    response = ErrorResponse(
        success=False,
        error=messages.get(error.message_key, requested_language(request), error.message),
        code=error.code,
        retryable=error.retryable,
        field=error.field,
        details=details if len(details) > 1 else None,
        quota=ExceededQuota.from_object(error.state) if isinstance(error, QuotaExceeded) else None,
    )
    return json_response(response.to_document(), error.status, {**error_headers(error), **headers})


def error_headers(error: ApiError) -> dict[str, str]:
    """Return the headers of an error, the same in every dialect."""
    headers = {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    return headers


def make_etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def etag_matches(request: HTTPConnection, tag: str) -> bool:
    """Return whether If-None-Match names the tag, weak or strong."""
    offered = header_values(request.scope, "if-none-match")
    if not offered:
        return False
    tags = {part.strip().removeprefix("W/") for header in offered for part in header.split(",")}
    return "*" in tags or tag in tags


class CachedResponse(NamedTuple):
    """A response ready to be sent many times, JSON by default. fixed: its headers but for the ETag.

    A tuple, which is made in half the time of a frozen dataclass: polls of completed tasks make one each.
    """

    body: bytes
    tag: str
    fixed: Mapping[str, str]
    media_type: str = _JSON_TYPE

    @classmethod
    def from_document(cls, document: Any, *, ended: bool) -> CachedResponse:
        return cls.from_body(to_json(document), ended=ended)

    @classmethod
    def from_body(cls, body: bytes, *, ended: bool) -> CachedResponse:
        return cls(body=body, tag=make_etag(body), fixed=_ENDED_HEADERS if ended else _UNFINISHED_HEADERS)

    @property
    def headers(self) -> dict[str, str]:
        return {"etag": self.tag, **self.fixed}

    def respond(self, request: HTTPConnection) -> Response:
        """Return all of it, or 304 if the caller has it already."""
        return self.not_modified() if etag_matches(request, self.tag) else self.full()

    def full(self) -> Response:
        if self.media_type != _JSON_TYPE:
            return Response(self.body, headers=self.headers, media_type=self.media_type)
        own = [(b"etag", self.tag.encode("latin-1")), *_encode_headers(tuple(self.fixed.items()))]
        response = EncodedResponse(self.body, 200, own)
        response.raw_headers.append(JSON_HEADERS[0])
        return response

    def not_modified(self) -> Response:
        return Response(status_code=304, headers=self.headers)


@lru_cache(maxsize=64)
def _encode_headers(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers)


def warning_headers(warnings: Sequence[str]) -> dict[str, str]:
    """Return a `Warning` (RFC 7234, 5.5): 299 is persistent, - replaces the host. Catalog messages are plain ASCII."""
    return {"warning": ", ".join(f'299 - "{warning}"' for warning in warnings)} if warnings else {}
