"""Models of the chat service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.datastructures import FormData, UploadFile

from broker.api.http.request_body import RequestModel, UploadedChunks, validation_error
from broker.api.shared.models import SnakeResponseModel
from broker.errors import ApiError
from broker.orders import ImageParams, OrderRequest, ReferenceSource, UploadedReference

MAX_CANDIDATES: Final = 6
MAX_SAFE_INTEGER: Final = 2**53 - 1
"""Largest integer that every JSON parser reads exactly."""
FILES: Final = "files"

SPELLING: Final = {"topP": "top_p", "topK": "top_k", "maxOutputTokens": "max_output_tokens"}
"""Names of options in the catalogs of providers → in requests."""

_WHOLE: Final = r"[+-]?[0-9]{1,15}"
_DECIMAL: Final = rf"{_WHOLE}(\.[0-9]{{1,15}})?"

F = TypeVar("F", bound="ChatServiceForm")


def _read_number(value: object) -> object:
    """Return a number that is written out as text, as every number of a form is; anything else unchanged."""
    text = value.strip() if isinstance(value, str) else ""
    if not re.fullmatch(_DECIMAL, text):
        return value
    return int(text) if re.fullmatch(_WHOLE, text) else float(text)


def _published(kind: str, pattern: str, **rules: Any) -> WithJsonSchema:
    number = {"type": kind, **rules}
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": f"^{pattern}$"}, {"type": "null"}]})


_Integer = Annotated[int | None, BeforeValidator(_read_number), _published("integer", _WHOLE)]
_Positive = Annotated[
    Annotated[int, Field(ge=1, le=MAX_SAFE_INTEGER)] | None,
    BeforeValidator(_read_number),
    _published("integer", _WHOLE, minimum=1, maximum=MAX_SAFE_INTEGER),
]
_Seed = Annotated[
    Annotated[int, Field(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)] | None,
    BeforeValidator(_read_number),
    _published("integer", _WHOLE, minimum=-MAX_SAFE_INTEGER, maximum=MAX_SAFE_INTEGER),
]
_Temperature = Annotated[
    Annotated[float, Field(ge=0, le=2)] | None,
    BeforeValidator(_read_number),
    _published("number", _DECIMAL, minimum=0, maximum=2),
]
_Probability = Annotated[
    Annotated[float, Field(ge=0, le=1)] | None,
    BeforeValidator(_read_number),
    _published("number", _DECIMAL, minimum=0, maximum=1),
]
_ConversationId = Annotated[int | str | None, Field(description="the conversation to which the turn is added")]
_ParentId = Annotated[
    str | None,
    Field(description="with conv_id: a message, a turn or a task of it, after which the turn comes; default: the last"),
]
_File = Annotated[Any, WithJsonSchema({"type": "string", "format": "binary"})]


class ChatServiceOptions(RequestModel):
    """The prompt and the options, in JSON and in forms; other fields are kept as extra fields."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str
    model: Annotated[str | None, Field(description="a name or alias of /api/models")] = None
    temperature: _Temperature = None
    top_p: _Probability = None
    top_k: _Positive = None
    candidate_count: Annotated[_Integer, Field(description=f"images; limited to 1 … {MAX_CANDIDATES}")] = None
    seed: _Seed = None
    max_output_tokens: _Positive = None
    conv_id: _ConversationId = None
    parent_id: _ParentId = None

    def to_order(self, *sources: ReferenceSource) -> OrderRequest:
        """Return the order request; the catalog checks its values."""
        extra = {
            "temperature": self.temperature,
            "topP": self.top_p,
            "topK": self.top_k,
            "maxOutputTokens": self.max_output_tokens,
        }
        return OrderRequest(
            params=ImageParams(
                prompt=self.prompt,
                model=self.model or "",
                seed=self.seed,
                extra={name: value for name, value in extra.items() if value is not None},
            ),
            count=1 if self.candidate_count is None else min(max(self.candidate_count, 1), MAX_CANDIDATES),
            sources=sources,
            origin={"dialect": "chat_service"},
        )

    @property
    def ignored(self) -> list[str]:
        """The fields of the request without effect."""
        has_effect = self.conversation_id is not None or self.parent_id is None
        return [*(() if has_effect else ("parent_id",)), *(self.model_extra or ())]

    @property
    def conversation_id(self) -> str | None:
        return None if self.conv_id in {None, ""} else str(self.conv_id)

    @property
    def parent(self) -> str | None:
        """The turn or task after which the turn comes; a message has the id of its turn, and its role."""
        return self.parent_id.partition(":")[0] if self.parent_id else None


class ChatServiceForm(ChatServiceOptions):
    """An order with reference images as files."""

    files: Annotated[list[_File], Field(json_schema_extra={"minItems": 1}, description="jpeg, png or webp")] = Field(
        default=[]
    )

    @classmethod
    def min_files(cls) -> int:
        return 1

    def to_order(self, *sources: ReferenceSource) -> OrderRequest:
        return super().to_order(*sources, *(UploadedReference(chunks=UploadedChunks(file)) for file in self.files))


class ChatServiceComposeForm(ChatServiceForm):
    """An order that combines several images."""

    files: Annotated[list[_File], Field(json_schema_extra={"minItems": 2}, description="jpeg, png or webp")] = Field(
        default=[]
    )

    @classmethod
    def min_files(cls) -> int:
        return 2


class ChatServiceImages(SnakeResponseModel):
    images: Annotated[list[str], Field(description="PNG, base64")]
    texts: Annotated[list[str], Field(description="what the model wrote beside the images")]


def read_chat_form(form: FormData, model: type[F]) -> F:
    """Return the fields of a form. Empty fields count as absent, and empty files too, because browsers send them.

    Raises `ApiError` naming the fields that are wrong.
    """
    fields: dict[str, Any] = {FILES: [file for value in form.getlist(FILES) if (file := _sent_file(value))]}
    for name, value in form.multi_items():
        if name == FILES or value == "":
            continue
        if isinstance(value, UploadFile) and name in model.model_fields:
            raise ApiError("invalid_request", f"{name} must be text, not a file.", field=name)
        fields.setdefault(name, value)
    if len(fields[FILES]) < model.min_files():
        least = "at least one image" if model.min_files() == 1 else f"at least {model.min_files()} images"
        raise ApiError("invalid_image", f"Send {least} as {FILES}.", field=FILES)
    return _validated(model, fields)


def _sent_file(value: str | UploadFile) -> UploadFile | None:
    if isinstance(value, UploadFile):
        return value if value.filename or value.size else None
    if value:
        raise ApiError("invalid_image", f"{FILES} must be sent as files: give each part a file name.", field=FILES)
    return None


def _validated(model: type[F], fields: Mapping[str, Any]) -> F:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise validation_error(error) from error
