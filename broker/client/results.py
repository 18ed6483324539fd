"""What a broker tells, as values: orders, tasks and images.

Keys that a newer broker adds do no harm; they are in `raw`. An older broker's missing ones are None.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

Document = Mapping[str, Any]

ENDED: Final = frozenset({"completed", "failed", "canceled"})


class Malformed(ValueError):
    """A document that no broker would send."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """An order that the broker keeps. ids: its tasks, one per image. ignored: fields that the provider cannot use.

    key: the idempotency key; ordering the same with it again gives the same tasks, and costs nothing. A retry has none.
    """

    ids: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    key: str | None = None

    @property
    def id(self) -> str:
        """The first task."""
        return self.ids[0]

    @classmethod
    def of(cls, document: Document, key: str | None = None) -> Order:
        ids = [task_id for task_id in _listed(document, "taskIds") if isinstance(task_id, str)]
        if not ids:
            raise Malformed("an order without tasks")
        return cls(ids=tuple(ids), ignored=tuple(map(str, _listed(document, "ignored"))), key=key)


@dataclass(frozen=True, kw_only=True)
class Result:
    """An image as the broker keeps it, without its bytes. size: in bytes. sha256: hexadecimal."""

    url: str
    width: int | None = None
    height: int | None = None
    size: int | None = None
    media_type: str | None = None
    sha256: str | None = None
    thumbnail: str | None = None

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]

    @classmethod
    def of(cls, document: Document, base: str) -> Result:
        thumbnail = _text(document, "thumbnail")
        return cls(
            url=_absolute(_required(document, "url"), base),
            width=_integer(document, "width"),
            height=_integer(document, "height"),
            size=_integer(document, "bytes"),
            media_type=_text(document, "mediaType"),
            sha256=_text(document, "sha256"),
            thumbnail=thumbnail and _absolute(thumbnail, base),
        )


@dataclass(frozen=True, kw_only=True)
class Image(Result):
    """An image with its bytes. A notebook shows it where it is the last value of a cell."""

    content: bytes = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write it to a file, or under its own name into a folder; where it is then. Raises OSError."""
        place = Path(path)
        place = place / self.name if place.is_dir() else place
        place.write_bytes(self.content)
        return place

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {self.media_type: base64.b64encode(self.content).decode()} if self.media_type else {}

    def _repr_png_(self) -> bytes | None:
        return self.content if self.media_type == "image/png" else None

    def _repr_jpeg_(self) -> bytes | None:
        return self.content if self.media_type == "image/jpeg" else None


@dataclass(frozen=True, kw_only=True)
class ErrorDetail:
    """Why there is no image. message: the provider's own words. billed: `yes`, `no` or `unknown`."""

    code: str | None = None
    retryable: bool = False
    billed: str = "unknown"
    provider: str | None = None
    provider_code: str | None = None
    message: str | None = None

    @classmethod
    def of(cls, document: Document) -> ErrorDetail:
        return cls(
            code=_text(document, "code"),
            retryable=document.get("retryable") is True,
            billed=_text(document, "billed") or "unknown",
            provider=_text(document, "provider"),
            provider_code=_text(document, "providerCode"),
            message=_text(document, "message"),
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    amount: float
    unit: str

    @classmethod
    def of(cls, document: Document) -> Cost | None:
        amount = document.get("amount")
        known = isinstance(amount, int | float) and not isinstance(amount, bool)
        return cls(amount=float(amount), unit=_text(document, "unit") or "credits") if known else None  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as it was when it was asked for.

    status: `pending`, `processing`, `completed`, `failed` or `canceled`. images: empty until it is completed.
    progress: what the broker tells of the way, with at least a `stage`. raw: all that it told.
    """

    id: str
    status: str
    prompt: str | None = field(default=None, repr=False)
    model: str | None = None
    mode: str | None = None
    aspect_ratio: str | None = None
    resolution: str | None = None
    images: tuple[Result, ...] = ()
    error: str | None = None
    error_detail: ErrorDetail | None = None
    progress: Document = field(default_factory=dict, hash=False)
    provider: str | None = None
    attempts: int | None = None
    cost: Cost | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    expires_at: datetime | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def stage(self) -> str | None:
        return _text(self.progress, "stage")

    @classmethod
    def of(cls, document: Any, base: str = "") -> Task:
        """base: the broker's address, before the paths of images. Raises `Malformed`."""
        if not isinstance(document, Mapping):
            raise Malformed("a task that is no object")
        detail, cost = _object(document, "errorDetail"), _object(document, "cost")
        return cls(
            id=_required(document, "id"),
            status=_required(document, "status"),
            prompt=_text(document, "prompt"),
            model=_text(document, "model"),
            mode=_text(document, "mode"),
            aspect_ratio=_text(document, "aspectRatio"),
            resolution=_text(document, "resolution"),
            images=tuple(Result.of(one, base) for one in _listed(document, "results") if isinstance(one, Mapping)),
            error=_text(document, "error"),
            error_detail=None if detail is None else ErrorDetail.of(detail),
            progress=_object(document, "progress") or {},
            provider=_text(document, "provider"),
            attempts=_integer(document, "attempts"),
            cost=None if cost is None else Cost.of(cost),
            created_at=_moment(document, "createdAt"),
            updated_at=_moment(document, "updatedAt"),
            expires_at=_moment(document, "expiresAt"),
            raw=document,
        )


@dataclass(frozen=True, kw_only=True)
class Page:
    """Tasks, newest first. cursor: asks for those that follow; None at the end."""

    tasks: tuple[Task, ...]
    cursor: str | None = None

    @classmethod
    def of(cls, document: Document, base: str) -> Page:
        tasks = tuple(Task.of(one, base) for one in _listed(document, "data"))
        return cls(tasks=tasks, cursor=_text(document, "nextCursor"))


def _absolute(url: str, base: str) -> str:
    return url if "://" in url else base + url


def _required(document: Document, key: str) -> str:
    value = _text(document, key)
    if not value:
        raise Malformed(f"{key} is missing")
    return value


def _text(document: Document, key: str) -> str | None:
    value = document.get(key)
    return value if isinstance(value, str) else None


def _integer(document: Document, key: str) -> int | None:
    value = document.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _object(document: Document, key: str) -> Document | None:
    value = document.get(key)
    return value if isinstance(value, Mapping) else None


def _listed(document: Document, key: str) -> Sequence[Any]:
    value = document.get(key)
    return value if isinstance(value, list | tuple) else ()


def _moment(document: Document, key: str) -> datetime | None:
    try:
        return datetime.fromisoformat(_text(document, key) or "")
    except ValueError:
        return None
