"""Models and error shape of Replicate's API."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field
from starlette.requests import HTTPConnection
from starlette.responses import Response

from broker.api.http.pagination import cursor_text
from broker.api.http.query import QueryModel
from broker.api.http.request_body import RequestModel
from broker.api.http.responses import error_headers, json_response
from broker.api.shared.field_names import respell_names
from broker.api.shared.models import Seed, SnakeResponseModel
from broker.errors import ApiError
from broker.notifications.formats.replicate import WEBHOOK_EVENTS, ReplicatePrediction
from broker.orders import DataUriReference, ReferenceSource, UrlReference
from broker.presenter import Absent, Moment, OneOf

MAX_ECHOED_CHARACTERS: Final = 500
MAX_ECHOED_FIELDS: Final = 50
MAX_ECHOED_ENTRIES: Final = 20

_IMAGE_FIELD: Final = re.compile(r"image|image_input|input_images?|images|image_[0-9]{1,2}")
"""Fields of reference images, of these models and of others that clients have moved from."""
_SECRET_FIELD: Final = re.compile(r".*(key|token|secret|password).*", re.IGNORECASE | re.DOTALL)
"""Fields like `openai_api_key`, which models at Replicate have."""
_REDACTED: Final = "[REDACTED]"
_DATA_URI: Final = re.compile(r"data:[^,]{0,100},")
_URL: Final = re.compile(r"https?://", re.IGNORECASE)
_INPUT_IMAGE: Final = {"type": "string", "description": "a URL, or a data URI"}


# -- requests


class ReplicateInput(RequestModel):
    """The input of a prediction. Fields that are not known are kept as extra fields."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str
    image_input: Annotated[
        list[str] | str | None,
        Field(description="reference images; also as image, input_image, input_images, images, image_2, …"),
    ] = None
    aspect_ratio: Annotated[str | None, Field(description="one of the model's, or match_input_image")] = None
    resolution: str | None = None
    output_format: str | None = None
    number_of_images: int | None = None
    num_outputs: int | None = None
    seed: Seed | None = None

    @property
    def count(self) -> int:
        counts = (self.number_of_images, self.num_outputs)
        return next((count for count in counts if count is not None), 1)

    def image_texts(self) -> list[str]:
        """Return the URLs and data URIs of the reference images. Raises `ApiError` for a field that has others."""
        fields = {"image_input": self.image_input, **(self.model_extra or {})}
        return [text for name, value in fields.items() if _IMAGE_FIELD.fullmatch(name) for text in _texts(name, value)]

    def ignored_names(self) -> list[str]:
        """Return the names of the fields that are not used."""
        return [name for name in self.model_extra or () if not _IMAGE_FIELD.fullmatch(name)]

    def to_echo(self) -> dict[str, Any]:
        """Return the input as a prediction shows it: without the prompt, image data, and what is long or nested.

        Secrets are left out, too: fields named so, and the queries of URLs, which sign them.
        """
        values = self.model_dump(exclude={"prompt"}, exclude_unset=True)
        return {
            name[:MAX_ECHOED_CHARACTERS]: _REDACTED
            if _SECRET_FIELD.fullmatch(name) and isinstance(value, str)
            else _shorten(value)
            for name, value in list(values.items())[:MAX_ECHOED_FIELDS]
            if not isinstance(value, dict)
        }


class ReplicateOrder(RequestModel):
    """The body of a request for a prediction; other fields are kept as extra fields."""

    model_config = ConfigDict(extra="allow", strict=True)

    input: ReplicateInput
    version: Annotated[str | None, Field(description="`owner/name`, `owner/name:id`, or the id of a version")] = None
    model: Annotated[str | None, Field(description="`owner/name`, instead of a version")] = None
    webhook: Annotated[str | None, Field(description="called at the chosen events")] = None
    webhook_completed: Annotated[str | None, Field(description="called at the end; the older form")] = None
    webhook_events_filter: list[Annotated[str, OneOf(WEBHOOK_EVENTS)]] | None = None
    stream: Annotated[bool | None, Field(description="without effect: images are not streamed")] = None


class ReplicateListQuery(QueryModel):
    cursor: Annotated[tuple[float, str] | None, cursor_text("task")] = None


def _texts(name: str, value: Any) -> Iterator[str]:
    for text in value if isinstance(value, list) else [value]:
        if text in (None, ""):
            continue
        if not isinstance(text, str):
            raise ApiError("invalid_request", f"input.{name} must be text, or a list of texts.", field=f"input.{name}")
        yield text


def make_source(text: str) -> ReferenceSource:
    """Return the source of a reference image. Raises `ApiError` for a text that is neither a URL nor a data URI."""
    if text[:5].lower() == "data:":
        return DataUriReference(text=text)
    if text.startswith("/uploads/") or _URL.match(text):
        return UrlReference(url=text)
    raise ApiError("invalid_image", "An input image must be an http(s) URL or a data URI.", field="input")


def _shorten(value: Any) -> Any:
    if isinstance(value, list):
        return [_shorten(entry) for entry in value[:MAX_ECHOED_ENTRIES] if not isinstance(entry, list | dict)]
    if not isinstance(value, str):
        return value
    if head := _DATA_URI.match(value):
        return f"{head[0]}…"
    if _URL.match(value):
        value = value.partition("?")[0]
    return value if len(value) <= MAX_ECHOED_CHARACTERS else f"{value[:MAX_ECHOED_CHARACTERS]}…"


# -- responses


class ReplicatePage(SnakeResponseModel):
    """A page of predictions, newest first."""

    next: Annotated[str | None, Field(description="the address of the next page")]
    previous: None
    results: list[ReplicatePrediction]


class ReplicateVersion(SnakeResponseModel):
    id: str
    created_at: Moment
    cog_version: str
    openapi_schema: dict[str, Any]


class ReplicateVersionPage(SnakeResponseModel):
    next: None
    previous: None
    results: list[ReplicateVersion]


class ReplicateModelData(SnakeResponseModel):
    url: str
    owner: str
    name: str
    description: str
    visibility: Annotated[str, OneOf(("public",))]
    github_url: None
    paper_url: None
    license_url: None
    run_count: int
    cover_image_url: None
    default_example: None
    latest_version: ReplicateVersion | None


class ReplicateWebhookSecret(SnakeResponseModel):
    key: str


class ReplicateInvalidField(SnakeResponseModel):
    field: str
    description: str


class ReplicateProblem(SnakeResponseModel):
    """The body of every error: RFC 7807, with the broker's code."""

    title: str
    detail: str
    status: int
    code: str
    retryable: bool
    invalid_fields: list[ReplicateInvalidField] | Absent = None


_FIELDS: Final = {
    "callbackUrl": "webhook",
    "aspectRatio": "aspect_ratio",
    "outputFormat": "output_format",
    "numberOfImages": "num_outputs",
    "imageUrls": "image_input",
}
"""Names of the native API in the messages of errors → Replicate's."""


def render_error(_: HTTPConnection, error: ApiError, headers: Mapping[str, str]) -> Response:
    fields = [(one.field, one.message) for one in error.details]
    if not fields and error.field:
        fields = [(error.field, error.message)]
    problem = ReplicateProblem(
        title=HTTPStatus(error.status).phrase,
        detail=_respell(error.message),
        status=error.status,
        code=error.code,
        retryable=error.retryable,
        invalid_fields=[
            ReplicateInvalidField(field=_respell(name), description=_respell(message)) for name, message in fields
        ]
        or None,
    )
    return json_response(problem.to_document(), error.status, {**error_headers(error), **headers})


def _respell(text: str) -> str:
    return respell_names(text, _FIELDS)
