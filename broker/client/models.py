"""Values that the client returns: orders, tasks and images.

Parsing is lenient: unknown keys stay in `raw`, and a missing key or one of another type is None.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

Document = Mapping[str, Any]

ENDED: Final = frozenset({"completed", "failed", "canceled"})

_JSON_NAMES: Final = {"size": "bytes"}
"""Keys of the API that are not the camel case of the field."""


class InvalidResponse(ValueError):
    """A document that a broker does not send."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """An accepted order."""

    ids: tuple[str, ...]
    """Tasks, one per image."""
    ignored: tuple[str, ...] = ()
    """Parameters that the provider does not support."""
    key: str | None = None
    """Idempotency key: the same order with it returns the same tasks at no cost. None for a retry."""

    @property
    def id(self) -> str:
        """The first task."""
        return self.ids[0]

    @classmethod
    def parse(cls, document: Document, key: str | None = None) -> Order:
        ids = tuple(task_id for task_id in _list_field(document, "taskIds") if isinstance(task_id, str))
        if not ids:
            raise InvalidResponse("an order without tasks")
        return cls(ids=ids, ignored=tuple(map(str, _list_field(document, "ignored"))), key=key)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A stored image without its bytes."""

    url: str
    width: int | None = None
    height: int | None = None
    size: int | None = None
    """Bytes."""
    media_type: str | None = None
    sha256: str | None = None
    """Hexadecimal."""
    thumbnail: str | None = None

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]

    @classmethod
    def parse(cls, document: Document, base: str) -> Result:
        fields = _parse_fields(cls, document)
        urls = {name: base + url for name in ("url", "thumbnail") if "://" not in (url := fields.get(name, "://"))}
        return _require_fields(cls, {**fields, **urls})


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

    def _repr_png_(self) -> bytes | None:
        return self.content if self.media_type == "image/png" else None

    def _repr_jpeg_(self) -> bytes | None:
        return self.content if self.media_type == "image/jpeg" else None


@dataclass(frozen=True, kw_only=True)
class ErrorDetail:
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
    unit: str = "credits"


@dataclass(frozen=True, kw_only=True)
class Task:
    """State of a task at the time of the request."""

    id: str
    status: str
    """`pending`, `processing`, `completed`, `failed` or `canceled`."""
    prompt: str | None = field(default=None, repr=False)
    model: str | None = None
    mode: str | None = None
    aspect_ratio: str | None = None
    resolution: str | None = None
    images: tuple[Result, ...] = ()
    """Empty until the task is completed."""
    error: str | None = None
    error_detail: ErrorDetail | None = None
    progress: Document = field(default_factory=dict, hash=False)
    """At least a `stage`."""
    provider: str | None = None
    attempts: int | None = None
    cost: Cost | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    expires_at: datetime | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)
    """The whole document."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def stage(self) -> str | None:
        stage = self.progress.get("stage")
        return stage if isinstance(stage, str) else None

    @classmethod
    def parse(cls, document: Any, base: str = "") -> Task:
        """base: URL of the broker, put before the paths of images. Raises `InvalidResponse`."""
        if not isinstance(document, Mapping):
            raise InvalidResponse("a task that is not an object")
        detail, cost, progress = (document.get(key) for key in ("errorDetail", "cost", "progress"))
        cost_fields = _parse_fields(Cost, cost)
        results = _list_field(document, "results")
        return _require_fields(
            cls,
            {
                **_parse_fields(cls, document),
                "images": tuple(Result.parse(result, base) for result in results if isinstance(result, Mapping)),
                "error_detail": ErrorDetail(**_parse_fields(ErrorDetail, detail))
                if isinstance(detail, Mapping)
                else None,
                "cost": Cost(**cost_fields) if "amount" in cost_fields else None,
                "progress": progress if isinstance(progress, Mapping) else {},
                "raw": document,
            },
        )


@dataclass(frozen=True, kw_only=True)
class Page:
    """Tasks, newest first."""

    tasks: tuple[Task, ...]
    cursor: str | None = None
    """Requests the next page; None on the last."""

    @classmethod
    def parse(cls, document: Document, base: str) -> Page:
        cursor = document.get("nextCursor")
        return cls(
            tasks=tuple(Task.parse(task, base) for task in _list_field(document, "data")),
            cursor=cursor if isinstance(cursor, str) else None,
        )


def _require_fields(cls: type[T], fields: Mapping[str, Any]) -> T:
    """Return the value; raise `InvalidResponse` when a required field is missing or empty."""
    for declared in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING
        if required and not fields.get(declared.name):
            raise InvalidResponse(f"{declared.name} is missing")
    return cls(**fields)


def _parse_fields(cls: type[Any], document: Any) -> dict[str, Any]:
    """Return the fields of simple type whose JSON values have that type."""
    found: dict[str, Any] = {}
    if not isinstance(document, Mapping):
        return found
    for declared in dataclasses.fields(cls):
        value = document.get(_JSON_NAMES.get(declared.name) or _camel_case(declared.name))
        match str(declared.type).removesuffix(" | None"), value:
            case ("str", str()) | ("bool", bool()):
                found[declared.name] = value
            case "int", int() if not isinstance(value, bool):
                found[declared.name] = value
            case "float", int() | float() if not isinstance(value, bool):
                found[declared.name] = float(value)
            case "datetime", str():
                found[declared.name] = _parse_time(value)
    return found


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def _parse_time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _list_field(document: Document, key: str) -> Sequence[Any]:
    value = document.get(key)
    return value if isinstance(value, list) else ()
