"""What a caller wants, in our words, with every value already checked against the catalog."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

Mode = Literal["text-to-image", "image-to-image"]
OutputFormat = Literal["png", "jpg"]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image the caller gave.

    url: where a provider can fetch it; None without a public address. handed_over: that is the provider's own store.
    read: streams its bytes. sha256: lower-case hex. size: bytes.
    """

    name: str
    media_type: str
    size: int
    sha256: str
    url: str | None
    read: Callable[[], AsyncIterator[bytes]]
    handed_over: bool = False


@dataclass(frozen=True, kw_only=True)
class Order:
    """One image, ordered.

    model: a canonical name of the catalog. aspect_ratio, resolution: None means the model's own default.
    """

    prompt: str
    model: str
    mode: Mode
    aspect_ratio: str | None = None
    resolution: str | None = None
    output_format: OutputFormat | None = None
    references: tuple[Reference, ...] = ()
    steps: int | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A reference image sent along with the request."""

    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, kw_only=True)
class DataUri:
    """A reference image written into the request."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """A reference image that we are to fetch."""

    url: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A reference image of an earlier order. blob: its name in the store. sha256: lower-case hex."""

    blob: str
    sha256: str


Source = Upload | DataUri | Link | Kept


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a caller asked for, in whichever dialect, before it is held against the catalog.

    count: how many images. idempotency_key: the caller's word that a repeated request is the same one.
    sent_before: how often the client says it sent this very request already; None if it does not count.
    """

    prompt: str
    model: str | None = None
    mode: str | None = None
    aspect_ratio: str | None = None
    resolution: str | None = None
    output_format: str | None = None
    count: int = 1
    steps: int | None = None
    seed: int | None = None
    sources: tuple[Source, ...] = ()
    idempotency_key: str | None = None
    sent_before: int | None = None
