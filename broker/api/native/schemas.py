"""Request and response models of orders, tasks and batches in the native dialect.

Requests are parsed by these models and responses are built as them; the OpenAPI document reads the same classes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from broker.api.http.pagination import PageQuery, cursor_text
from broker.api.http.query import EMPTY, ParsedText, QueryModel, one_of_text
from broker.presenter import TASK_ID, ResponseModel, TaskData, TaskId, TaskStatus
from storage import ids
from storage.states import STATUS_FILTERS

BATCH_ID: Final = f"^{ids.BATCH_ID.pattern}$"
MAX_TEXT: Final = 256 * 1024
"""Characters of one field; the catalog then checks the model's own limit."""
MAX_STEPS: Final = 1000
MAX_SAFE_INTEGER: Final = 2**53 - 1
"""Largest integer that every JSON parser reads exactly."""
EXAMPLE_ORDER: Final[JsonDict] = {"prompt": "a red fox", "model": "nano-banana", "aspectRatio": "16:9", "dryRun": True}
"""The request that the documentation page offers to send: it costs nothing."""

BatchId = Annotated[str, Field(pattern=BATCH_ID, examples=[f"batch_{'0' * 32}"])]


# -- requests


def _allow_empty_text(schema: dict[str, Any]) -> None:
    """Publish that an empty text counts as absent."""
    schema["anyOf"].append({"type": "string", "maxLength": 0})


def _limit_text(text: str) -> str:
    """Guard the parser; not published, because the limits of the models are far lower."""
    if len(text) > MAX_TEXT:
        raise PydanticCustomError("too_long", "is too long")
    return text


_LimitedText = Annotated[str, AfterValidator(_limit_text)]
_Text = _LimitedText | None
_Mode = Annotated[
    _Text,
    Field(
        description="default: by the presence of images",
        json_schema_extra={"enum": ["text-to-image", "image-to-image", "", None]},
    ),
]
_Count = Annotated[int | None, Field(ge=1, le=6, description="that many tasks", json_schema_extra=_allow_empty_text)]
_Steps = Annotated[int | None, Field(ge=1, le=MAX_STEPS, json_schema_extra=_allow_empty_text)]
_Seed = Annotated[int | None, Field(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER, json_schema_extra=_allow_empty_text)]
_Flag = Annotated[bool | None, Field(description="only show what would be sent", json_schema_extra=_allow_empty_text)]
_File = Annotated[Any, WithJsonSchema({"type": "string", "format": "binary"})]


class OrderFields(BaseModel):
    """Fields of an order that JSON and forms share. An empty or null value counts as absent.

    `params` folds the other spellings of a name into these before it validates, and drops absent values.
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
    dry_run: _Flag = None


class OrderJson(OrderFields):
    """An order in JSON; snake_case names are understood, too."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_ORDER]})

    images: Annotated[list[str] | None, Field(description="data URIs: jpeg, png or webp")] = None


class OrderForm(OrderFields):
    """An order as a form, with its images as files."""

    image: list[_File] = []


# -- queries

MAX_WAIT_SECONDS: Final = 30.0


def _parse_wait(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", text):
        raise ValueError(f"must be a number of seconds up to {MAX_WAIT_SECONDS:.0f}")
    return min(float(text), MAX_WAIT_SECONDS)


_WAIT_TEXT: Final = ParsedText(_parse_wait, {"anyOf": [{"type": "number", "minimum": 0}, EMPTY]})


class PollQuery(QueryModel):
    wait: Annotated[float, _WAIT_TEXT, Field(description="seconds to hold the response until the end; at most 30")] = (
        0.0
    )


class TaskListQuery(PageQuery):
    status: Annotated[str | None, one_of_text(STATUS_FILTERS), Field(description="only these")] = None
    cursor: Annotated[tuple[float, str] | None, cursor_text("task")] = None


# -- responses


class CostEstimate(ResponseModel):
    """Price of the order by the catalog; null where it is unknown."""

    price: float | None
    count: int
    total: float | None
    unit: str | None


class OrderAccepted(ResponseModel):
    success: Literal[True]
    task_id: TaskId
    status: Literal["processing"]
    message: str
    poll_url: Annotated[str, Field(pattern=f"^/api/task/{TASK_ID[1:]}")]
    task_ids: Annotated[list[TaskId], Field(min_length=1)]
    batch_id: BatchId
    batch_url: Annotated[str, Field(pattern=f"^/api/batch/{BATCH_ID[1:]}")]
    ignored: Annotated[list[str], Field(description="fields that were not used")]
    warnings: Annotated[list[str], Field(description="the same as in the header Warning")]
    estimate: CostEstimate


class ProviderPreview(ResponseModel):
    method: Literal["POST"]
    url: str
    json_: Annotated[dict[str, Any], Field(alias="json", description="the exact body for the provider")]
    price: float | None
    unit: str | None
    count: int
    total: float | None
    ignored: list[str]
    warnings: list[str]


class DryRunResponse(ResponseModel):
    success: Literal[True]
    dry_run: Literal[True]
    data: ProviderPreview


class StatusCounts(ResponseModel):
    pending: int
    processing: int
    completed: int
    failed: int
    canceled: int


class BatchData(ResponseModel):
    id: BatchId
    status: Annotated[TaskStatus, Field(description="completed: all have ended, at least one with an image")]
    counts: StatusCounts
    tasks: list[TaskData]
