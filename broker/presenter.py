"""Tasks and images as native JSON: the one shape that polls, streams, lists and webhooks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema, core_schema

from broker.catalog import MODES, Catalog
from broker.clock import iso
from broker.errors import TASK_CODES
from broker.i18n import Language, Messages
from broker.orders import USD_DIGITS, ImageParams
from storage import ids
from storage.ids import provider_of
from storage.images import StoredImage
from storage.states import TaskState
from storage.tasks import Task
from uploads.detect import MEDIA_TYPES
from uploads.thumbnails import can_have_thumbnail

THUMBNAIL_SIZE: Final = 512
"""Longest side of the thumbnail that `thumbnail` links to."""

TASK_ID: Final = f"^{ids.TASK_ID.pattern}$"


# -- the models


@dataclass(frozen=True)
class OneOf:
    """Type annotation of text from a closed set that the code holds as plain `str`."""

    choices: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.literal_schema(list(self.choices))


_NONE: Final = object()


class ResponseModel(BaseModel):
    """Base of all JSON that the broker sends: exactly the declared keys, in camelCase.

    A field with a default is a key that may be missing; all others are always present.
    """

    # built when first used: building all models takes an eighth of the start, and most processes use few
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True, defer_build=True)

    @classmethod
    def from_object(cls, source: object, **computed: Any) -> Self:
        """Return the model with the computed fields, and all others from the attributes of the same names."""
        same = {name: value for name in cls.model_fields if (value := getattr(source, name, _NONE)) is not _NONE}
        return cls(**{**same, **computed})

    def to_document(self) -> dict[str, Any]:
        """Return the JSON object as plain values."""
        return self.model_dump(by_alias=True, exclude_defaults=True)


def _moment_text(value: Any) -> Any:
    return iso(value) if isinstance(value, float) else value


Absent = SkipJsonSchema[None]
"""Type of a key that may be missing, but is never null."""
TaskId = Annotated[str, Field(pattern=TASK_ID, examples=[f"task_{'0' * ids.NUMBER_DIGITS}"])]
Moment = Annotated[
    str,
    BeforeValidator(_moment_text),
    Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-20T12:00:00.000Z"]),
]
"""ISO 8601 in UTC; made of text or of seconds since the epoch."""
ImagePath = Annotated[str, Field(pattern=f"^/uploads/(images|references)/{ids.IMAGE_NAME.pattern}$")]
MediaType = Annotated[str, OneOf(MEDIA_TYPES)]
ModeName = Annotated[str, OneOf(MODES)]
TaskStatus = Annotated[str, OneOf(("pending", "processing", "completed", "failed", "canceled"))]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ImageData(ResponseModel):
    """A stored image."""

    url: ImagePath
    width: int
    height: int
    bytes: int
    media_type: MediaType
    sha256: Sha256
    thumbnail: str | None


class ImageSize(ResponseModel):
    """Size of an image in pixels."""

    width: int
    height: int


class ResultData(ImageData):
    """A result, and whether it has the size that was ordered."""

    requested: Annotated[ImageSize | None, Field(description="by ratio and resolution; null: the model chooses it")]
    actual: ImageSize
    mismatch: Annotated[bool, Field(description="the image has another size than requested")]


class ImageMetadata(ImageData):
    """An image and the tasks it belongs to."""

    name: str
    kind: Annotated[str, OneOf(("result", "reference"))]
    task: TaskId
    tasks: Annotated[list[TaskId], Field(description="for a reference: all tasks of its request")]
    prompt: str
    model: str
    mode: ModeName
    aspect_ratio: str | None
    resolution: str | None
    steps: int | None
    seed: int | None
    provider: str
    created_at: Moment
    expires_at: Moment | None


class ProgressData(ResponseModel):
    """Progress of a task; null is unknown."""

    stage: Annotated[str, OneOf(("queued", "submitting", "waiting", "downloading", "done"))]
    position: Annotated[int | None, Field(ge=1, description="place in the queue of its provider")]
    provider_state: Annotated[str | None, Field(description="the provider's own word")]
    percent: Annotated[int | None, Field(ge=0, le=100, description="only where the provider reports it")]
    eta_seconds: Annotated[int | None, Field(ge=0, description="from the history of this broker")]


class CostData(ResponseModel):
    amount: float
    unit: Annotated[str | None, Field(description="of the provider that made the image")]
    usd: Annotated[float | None, Field(description="by the price table at the submission; null if unknown")]


class TaskErrorDetail(ResponseModel):
    code: Annotated[str, OneOf(tuple(sorted(TASK_CODES)))]
    retryable: bool
    billed: Annotated[str, OneOf(("yes", "no", "unknown")), Field(description="if this attempt costs")]
    provider: str
    provider_code: str | None
    message: Annotated[str | None, Field(description="the provider's own words")]


class GenerationRecord(ResponseModel):
    """The record that older front ends put into their list."""

    id: TaskId
    type: Literal["image"]
    mode: ModeName
    model: str
    prompt: str
    url: ImagePath
    timestamp: Moment
    aspect_ratio: str | None
    steps: int | None


class TaskData(ResponseModel):
    id: TaskId
    status: TaskStatus
    prompt: str
    model: str
    mode: ModeName
    aspect_ratio: str | None
    resolution: str | None
    result: Annotated[ImagePath | None, Field(description="the first image")]
    results: list[ResultData]
    texts: Annotated[list[str], Field(description="what the model wrote beside the images")]
    error: str | None
    error_detail: TaskErrorDetail | None
    progress: ProgressData
    provider: str
    attempts: int
    cost: CostData | None
    created_at: Moment
    updated_at: Moment
    expires_at: Annotated[Moment | None, Field(description="when it is deleted; null before its end, or if pinned")]
    generation: GenerationRecord | None


# -- the presenter


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a task beyond its row."""

    position: int | None = None
    """Place in the queue, from 1."""
    eta: int | None = None
    """Seconds until the end, rounded."""
    fresh_for: float = math.inf
    """Seconds until this may change without a change of the row."""


UNKNOWN: Final = Progress()


@dataclass(frozen=True, kw_only=True)
class TaskPresenter:
    """Builds the native models of tasks and images."""

    messages: Messages
    catalog: Catalog
    retention: float
    """Seconds after the end until a task is deleted."""
    unit_of: Callable[[str], str | None]
    """Provider → unit of its costs; None if unknown."""

    def task(
        self, task: Task, images: Sequence[StoredImage], language: Language, progress: Progress = UNKNOWN
    ) -> TaskData:
        """Return a task. images: the results of a completed task, in order."""
        results = [self._result_data(task, image) for image in images]
        error, error_detail = _error_code(task), None
        if error:
            error_detail = TaskErrorDetail.from_object(
                task,
                code=error,
                retryable=task.error_retryable,
                provider=provider_of(task.provider),
                message=task.error_detail,
            )
        return TaskData.from_object(
            task,
            provider=provider_of(task.provider),
            result=results[0].url if results else None,
            results=results,
            texts=list(task.texts),
            error=self.messages.task_error(error, task.billed, language) if error else None,
            error_detail=error_detail,
            progress=_progress(task, progress),
            attempts=task.attempt,
            cost=self._cost(task),
            expires_at=task.expires_at(self.retention),
            generation=_generation(task, results),
        )

    def _cost(self, task: Task) -> CostData | None:
        if task.cost is None:
            return None
        usd = None if task.cost_usd is None else round(task.cost_usd, USD_DIGITS)
        return CostData(amount=task.cost, unit=self.unit_of(provider_of(task.provider)), usd=usd)

    def _result_data(self, task: Task, image: StoredImage) -> ResultData:
        size = self.catalog.pixel_size(task.model, task.aspect_ratio, task.resolution)
        requested = None if size is None else ImageSize.from_object(size)
        actual = ImageSize.from_object(image)
        return ResultData(
            **dict(_image_data(image)),
            requested=requested,
            actual=actual,
            mismatch=requested is not None and requested != actual,
        )

    def image_metadata(self, image: StoredImage, tasks: Sequence[Task]) -> ImageMetadata:
        """Return the metadata of an image. tasks: those it belongs to, all of one request; at least one."""
        task, ends = tasks[0], [task.expires_at(self.retention) for task in tasks]
        params = ImageParams.from_columns(vars(task))
        return ImageMetadata.from_object(
            task,
            **dict(_image_data(image)),
            provider=provider_of(task.provider),
            name=image.name,
            kind=image.kind,
            task=task.id,
            tasks=[task.id for task in tasks],
            steps=params.steps,
            seed=params.seed,
            created_at=image.created_at,
            expires_at=max(end for end in ends if end) if all(ends) else None,
        )


def _progress(task: Task, progress: Progress) -> ProgressData:
    """Null is unknown, or has no meaning at this stage."""
    is_waiting = task.state == TaskState.WAITING and not task.has_ended
    stage = "downloading" if task.state == TaskState.FETCHING else task.state.value
    percent = task.provider_percent if is_waiting else None
    return ProgressData(
        stage="done" if task.has_ended else stage,
        position=progress.position,
        provider_state=task.provider_state if is_waiting else None,
        percent=None if percent is None else round(percent),
        eta_seconds=progress.eta,
    )


def _error_code(task: Task) -> str | None:
    """Return the code of a published end; a running task does not show the error of its last attempt."""
    if task.status not in {"failed", "canceled"}:
        return None
    return task.error_code or ("canceled" if task.state == TaskState.CANCELED else "provider_error")


def _image_data(image: StoredImage) -> ImageData:
    path, thumbnail = image_links(image.name, image.kind, image.media_type, image.width, image.height)
    return ImageData.from_object(image, url=path, bytes=image.size, thumbnail=thumbnail)


def image_links(name: str, kind: str, media_type: str, width: int, height: int) -> tuple[str, str | None]:
    """Return the path of an image, and of its thumbnail if it has one."""
    path = f"/uploads/{'references' if kind == 'reference' else 'images'}/{name}"
    return path, f"{path}?size={THUMBNAIL_SIZE}" if can_have_thumbnail(media_type, width, height) else None


def _generation(task: Task, results: Sequence[ImageData]) -> GenerationRecord | None:
    if task.state != TaskState.SUCCEEDED or not results:
        return None
    return GenerationRecord.from_object(
        task,
        type="image",
        url=results[0].url,
        timestamp=task.updated_at if task.ended_at is None else task.ended_at,
        steps=ImageParams.from_columns(vars(task)).steps,
    )
