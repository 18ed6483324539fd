"""Values that the client returns: orders, tasks and images.

Their fields have the names of the API in snake case. Unknown keys are ignored, except that a task keeps them in `raw`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel

Document = dict[str, Any]


class JsonObject:
    """Base of a value that pydantic parses from a JSON object of the broker."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(alias_generator=to_camel)


def _to_absolute(url: str, info: ValidationInfo) -> str:
    return url if "://" in url else f"{info.context or ''}{url}"


Url = Annotated[str, AfterValidator(_to_absolute)]
"""A URL, or a path below the URL that is the validation context."""


@dataclass(frozen=True, kw_only=True)
class Order(JsonObject):
    """An accepted order."""

    ids: Annotated[tuple[str, ...], Field(alias="taskIds", min_length=1)]
    """Tasks, one per image."""
    ignored: tuple[str, ...] = ()
    """Parameters that the provider does not support."""
    key: str | None = None
    """Idempotency key: the same order with it returns the same tasks at no cost. None for a retry."""

    @property
    def id(self) -> str:
        """The first task."""
        return self.ids[0]


@dataclass(frozen=True, kw_only=True)
class Result(JsonObject):
    """A stored image without its bytes."""

    url: Url
    width: int | None = None
    height: int | None = None
    size: Annotated[int | None, Field(alias="bytes")] = None
    """Bytes."""
    media_type: str | None = None
    sha256: str | None = None
    """Hexadecimal."""
    thumbnail: Url | None = None
    mismatch: bool = False
    """True if the image has another size than the order requested."""

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Image(Result):
    """An image with its bytes; a notebook displays it."""

    content: bytes = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the image to a file, or into a folder under its own name; return the path. Raises OSError."""
        target = Path(path)
        target = target / self.name if target.is_dir() else target
        target.write_bytes(self.content)
        return target

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {self.media_type: base64.b64encode(self.content).decode()} if self.media_type else {}


@dataclass(frozen=True, kw_only=True)
class ErrorDetail(JsonObject):
    """Reason why a task has no image."""

    code: str | None = None
    retryable: bool = False
    billed: str = "unknown"
    """`yes`, `no` or `unknown`."""
    provider: str | None = None
    provider_code: str | None = None
    message: str | None = None
    """The provider's own words."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    amount: float
    unit: str | None = None
    usd: float | None = None


@dataclass(frozen=True, kw_only=True)
class Task(JsonObject):
    """State of a task at the time of the request."""

    id: str
    status: str
    """`pending`, `processing`, `completed`, `failed` or `canceled`."""
    prompt: str | None = field(default=None, repr=False)
    model: str | None = None
    mode: str | None = None
    aspect_ratio: str | None = None
    resolution: str | None = None
    images: Annotated[tuple[Result, ...], Field(alias="results")] = ()
    """Empty until the task is completed."""
    texts: tuple[str, ...] = ()
    """Texts that the model wrote beside the images."""
    error: str | None = None
    error_detail: ErrorDetail | None = None
    progress: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """At least a `stage`."""
    provider: str | None = None
    attempts: int | None = None
    cost: Cost | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    expires_at: datetime | None = None
    """When it is deleted; None before its end, and while it is pinned."""
    withheld: bool = False
    """True in the list of an admin, for a task of another account: its id is shortened, its content left out."""
    owner: str | None = None
    """Name of that account."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The whole JSON object."""

    @property
    def ended(self) -> bool:
        return self.status in {"completed", "failed", "canceled"}

    @property
    def stage(self) -> str | None:
        return self.progress.get("stage")

    @model_validator(mode="before")
    @classmethod
    def _keep_raw(cls, document: Any) -> Any:
        return {**document, "raw": document} if isinstance(document, dict) else document


@dataclass(frozen=True, kw_only=True)
class TaskDocument:
    """Response with one task."""

    data: Task


@dataclass(frozen=True, kw_only=True)
class Page:
    """Tasks, newest first."""

    tasks: Annotated[tuple[Task, ...], Field(alias="data")]
    cursor: Annotated[str | None, Field(alias="nextCursor")] = None
    """Requests the next page; None on the last."""
