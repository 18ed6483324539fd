"""The parameters of a native order: their models, and how forms and JSON of several spellings become one of them.

The OpenAPI document reads the same models.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, AliasChoices, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict
from pydantic_core import ErrorDetails, PydanticCustomError
from starlette.datastructures import FormData, UploadFile

from broker.api.http.request_body import RequestModel, UploadedChunks
from broker.errors import ApiError, FieldError
from broker.ordering.own_images import OWN_PREFIX
from broker.orders import (
    DEFAULT_PRIORITY,
    PRIORITIES,
    DataUriReference,
    ImageParams,
    OrderRequest,
    ReferenceSource,
    UploadedReference,
    UrlReference,
)
from storage.sql.rows import new_row

MAX_IMAGES: Final = 6
MAX_TEXT: Final = 256 * 1024
"""Characters of one field; the catalog then checks the model's own limit."""
MAX_STEPS: Final = 1000
MAX_SAFE_INTEGER: Final = 2**53 - 1
"""Largest integer that every JSON parser reads exactly."""
EXAMPLE_ORDER: Final[JsonDict] = {"prompt": "a red fox", "model": "nano-banana", "aspectRatio": "16:9", "dryRun": True}
"""The request that the documentation page offers to send: it costs nothing."""

_MAX_IGNORED: Final = 20

T = TypeVar("T", bound="OrderFields")


# -- models


def _allow_empty_text(schema: dict[str, Any]) -> None:
    """Publish that an empty text counts as absent."""
    schema["anyOf"].append({"type": "string", "maxLength": 0})


def _limit_text(text: str) -> str:
    """Guard the parser; not published, because the limits of the models are far lower."""
    if len(text) > MAX_TEXT:
        raise PydanticCustomError("too_long", "is too long")
    return text


def _strip_blanks(text: str | None) -> str | None:
    """Return text without the blanks around it; None if there are only blanks."""
    return (text or "").strip() or None


_LimitedText = Annotated[str, AfterValidator(_limit_text)]
_Text = Annotated[_LimitedText | None, AfterValidator(_strip_blanks)]
_Mode = Annotated[
    _Text,
    Field(
        description="default: by the presence of images",
        json_schema_extra={"enum": ["text-to-image", "image-to-image", "", None]},
    ),
]
_Priority = Annotated[
    _Text,
    Field(
        description="among the caller's own orders; default: normal",
        json_schema_extra={"enum": [*PRIORITIES, "", None]},
    ),
]
_OR_EMPTY: Final = Field(json_schema_extra=_allow_empty_text)
_Count = Annotated[int | None, _OR_EMPTY, Field(ge=1, le=MAX_IMAGES, description="that many tasks")]
_Steps = Annotated[int | None, _OR_EMPTY, Field(ge=1, le=MAX_STEPS)]
_Seed = Annotated[int | None, _OR_EMPTY, Field(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)]
_Flag = Annotated[bool | None, _OR_EMPTY, Field(description="only show what would be sent")]
_File = Annotated[Any, WithJsonSchema({"type": "string", "format": "binary"})]


class OrderFields(RequestModel):
    """Fields of an order that JSON and forms share. An empty or null value counts as absent.

    Names that are not known are kept as extra fields.
    """

    model_config = ConfigDict(extra="allow", alias_generator=to_camel, strict=True)

    prompt: Annotated[
        _LimitedText,
        Field(
            description="up to the model's limit",
            examples=["a red fox"],
            json_schema_extra={"minLength": 1},  # an absent one is checked by the catalog, with all other fields
        ),
    ]
    model: Annotated[_Text, Field(description="a name or alias of /api/models", examples=["nano-banana"])] = None
    mode: _Mode = None
    aspect_ratio: Annotated[_Text, Field(description="one of the model's", examples=["16:9"])] = None
    resolution: Annotated[_Text, Field(description="one of the model's", examples=["1K"])] = None
    output_format: Annotated[_Text, Field(description="one of the model's", examples=["png"])] = None
    number_of_images: _Count = None
    image_urls: Annotated[list[_LimitedText] | None, Field(description="web addresses, fetched at once")] = None
    callback_url: Annotated[_Text, Field(description="called by a signed webhook when the task has ended")] = None
    steps: _Steps = None
    seed: _Seed = None
    provider: Annotated[_Text, Field(description="the only provider that may get the order")] = None
    priority: _Priority = None
    dry_run: _Flag = None

    def to_request(
        self, idempotency_key: str | None, retry_count: int | None = None, host: str | None = None
    ) -> OrderRequest:
        """Return the order request; the catalog checks its values. host: see `OrderRequest`."""
        params = {
            "prompt": self.prompt,
            "model": self.model or "",
            "aspect_ratio": self.aspect_ratio,
            "resolution": self.resolution,
            "output_format": self.output_format,
            "steps": self.steps,
            "seed": self.seed,
        }
        request = {
            "params": new_row(ImageParams, params),
            "mode": self.mode,
            "count": self.number_of_images or 1,
            "host": host,
            "sources": (*self.sent_images(), *map(_as_reference, self.image_urls or ())),
            "provider": self.provider,
            "priority": self.priority or DEFAULT_PRIORITY,
            "callback_url": self.callback_url,
            "idempotency_key": idempotency_key,
            "retry_count": retry_count,
        }
        return new_row(OrderRequest, request)

    @abstractmethod
    def sent_images(self) -> Sequence[ReferenceSource]:
        """Return the reference images in the request itself."""

    def ignored_fields(self, by_provider: Iterable[str]) -> list[str]:
        """Return the names of fields that the provider does not use or that are not known."""
        extra = self.model_extra
        unknown = [name[:64] for name in extra if name.isprintable()] if extra else ()
        return list(dict.fromkeys([*by_provider, *unknown[:_MAX_IGNORED]]))


def _as_reference(url: str) -> UrlReference:
    return UrlReference(url=url)


class OrderJson(OrderFields):
    """An order in JSON; snake_case names are understood, too."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_ORDER]})

    images: Annotated[
        list[str] | None, Field(description="data URIs: jpeg, png or webp; or /uploads/images/… of an earlier result")
    ] = None

    def sent_images(self) -> Sequence[ReferenceSource]:
        return [DataUriReference(text=text) for text in self.images] if self.images else ()


class OrderForm(OrderFields):
    """An order as a form, with its images as files, or as addresses of ours."""

    image: Annotated[list[_File], Field(validation_alias=AliasChoices("image", "images"))] = Field(default=[])

    def sent_images(self) -> Sequence[ReferenceSource]:
        return [
            UrlReference(url=sent) if isinstance(sent, str) else UploadedReference(chunks=UploadedChunks(sent))
            for sent in self.image
        ]


# -- reading

_NAMES: Final[dict[str, str]] = {
    **{name: to_camel(name) for name in OrderJson.model_fields},
    **{to_camel(name): to_camel(name) for name in OrderJson.model_fields},
    "n": "numberOfImages",
    **dict.fromkeys(("image", "file", "files"), "images"),
}
"""Name of a field by each of its spellings."""
_RANGES: Final = {
    "numberOfImages": (1, MAX_IMAGES),
    "steps": (1, MAX_STEPS),
    "seed": (-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER),
}
_CODES: Final = {"prompt": "invalid_prompt", "images": "invalid_image", "imageUrls": "invalid_image"}
_LIST_RULES: Final = {
    "images": "must be data URIs: send data:image/png;base64,<data>",
    "imageUrls": "must be a list of web addresses",
}
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


def read_json_order(document: Mapping[str, Any]) -> OrderJson:
    """Raises `ApiError` naming the fields that have a wrong type or range."""
    return _read_order(OrderJson, _json_values(document))


def read_form_order(form: FormData) -> OrderForm:
    """Raises `ApiError` like `read_json_order`. Numbers and booleans are written out in a form."""
    return _read_order(OrderForm, ((key, _form_value(_NAMES.get(key), value)) for key, value in form.multi_items()))


def _read_order(model: type[T], values: Iterable[tuple[str, Any]]) -> T:
    """Fold values of any spelling into the fields of the model. A missing prompt is an empty one."""
    folded: dict[str, Any] = {}
    for key, value in values:
        name = _NAMES.get(key)
        if name is None:
            folded[key] = value
        elif value is None or value == "":  # an empty field of a form was not filled in
            continue
        elif name in _LIST_RULES:
            folded.setdefault(name, []).append(value)
        elif folded.setdefault(name, value) != value or type(folded[name]) is not type(value):
            raise _field_error(name, "was given more than once: send one value")
    try:
        return model.model_validate({"prompt": "", **folded})
    except ValidationError as error:
        raise _api_error(error) from error


def _json_values(document: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Return the values by key, the entries of a list one by one."""
    return _unfold_lists(document) if list in map(type, document.values()) else document.items()


def _unfold_lists(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        name = _NAMES.get(key)
        if name not in _LIST_RULES or not isinstance(value, list):
            yield key, value
            continue
        if "" in value or None in value:
            raise _field_error(name, "must not have empty entries")  # dropped, it would be another order
        yield from ((key, entry) for entry in value)


def _form_value(name: str | None, value: str | UploadFile) -> Any:
    """Check that files are where files belong, and read numbers and booleans. An empty file field is absent."""
    if name is None:
        return value
    if isinstance(value, UploadFile):
        if name != "images":
            raise _field_error(name, "must be text, not a file")
        return value if value.filename or value.size else None
    if name == "images" and value and not value.startswith(OWN_PREFIX):
        raise ApiError("invalid_image", "image must be sent as a file: give the part a file name.", field="image")
    if name in _RANGES and re.fullmatch(r"[+-]?[0-9]{1,20}", value.strip()):
        return int(value)
    if name == "dryRun":
        return _FLAGS.get(value.strip().lower(), value)
    return value


# -- errors


def _api_error(error: ValidationError) -> ApiError:
    """Return the error of the API that names each wrong field once, with a sentence of its own."""
    messages: dict[str, str] = {}
    for one in error.errors(include_url=False):
        name = str(one["loc"][0])
        messages.setdefault(name, f"{name} {_rule_text(name, one)}.")
    details = [FieldError(field=name, message=message) for name, message in messages.items()]
    first = details[0]
    return ApiError(_CODES.get(first.field, "invalid_request"), first.message, field=first.field, details=details)


def _rule_text(name: str, error: ErrorDetails) -> str:
    if name in _LIST_RULES:
        return _LIST_RULES[name]
    kind = error["type"]
    if kind == "too_long":
        return f"is longer than {MAX_TEXT:,} characters"
    if kind in {"greater_than_equal", "less_than_equal"}:
        return "must be from {} to {}".format(*_RANGES[name])
    if kind.startswith("int"):
        return "must be a whole number"
    return "must be true or false" if kind.startswith("bool") else "must be text"


def _field_error(name: str, rule: str) -> ApiError:
    return ApiError(_CODES.get(name, "invalid_request"), f"{name} {rule}.", field=name)
