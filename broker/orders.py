"""Values of an order: what a caller requested, and what is ordered from a provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["text-to-image", "image-to-image"]
OutputFormat = Literal["png", "jpg"]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A stored reference image, as a provider can use it."""

    name: str
    media_type: str
    size: int
    """Bytes."""
    sha256: str
    """Lower-case hex."""
    url: str | None
    """Where a provider can download it; None without a public URL."""
    read: Callable[[], AsyncIterator[bytes]]
    """Streams its bytes."""
    handed_over: bool = False
    """Whether `url` leads to the provider's own store."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The validated order for one image."""

    prompt: str
    model: str
    """A canonical name of the catalog."""
    mode: Mode
    aspect_ratio: str | None = None
    """None: the model's default."""
    resolution: str | None = None
    """None: the model's default."""
    output_format: OutputFormat | None = None
    references: tuple[Reference, ...] = ()
    steps: int | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class UploadedReference:
    """A reference image sent as a file with the request."""

    chunks: AsyncIterator[bytes]
    """Can be read more than once, from the beginning each time."""


@dataclass(frozen=True, kw_only=True)
class DataUriReference:
    """A reference image written into the request."""

    text: str


@dataclass(frozen=True, kw_only=True)
class UrlReference:
    """A reference image to be downloaded."""

    url: str


@dataclass(frozen=True, kw_only=True)
class StoredReference:
    """A reference image of an earlier order."""

    blob: str
    """Its name in the blob store."""
    sha256: str
    """Lower-case hex."""


ReferenceSource = UploadedReference | DataUriReference | UrlReference | StoredReference


@dataclass(frozen=True, kw_only=True)
class OrderRequest:
    """What a caller requested, in whichever dialect, before it is validated against the catalog."""

    prompt: str
    model: str | None = None
    mode: str | None = None
    aspect_ratio: str | None = None
    resolution: str | None = None
    output_format: str | None = None
    count: int = 1
    """Number of images."""
    steps: int | None = None
    seed: int | None = None
    sources: tuple[ReferenceSource, ...] = ()
    callback_url: str | None = field(default=None, repr=False)
    """Where the caller receives a webhook at the end."""
    idempotency_key: str | None = None
    """Identifies a repeated request as the same one."""
    retry_count: int | None = None
    """How many times the client says it has sent this request before; None if it does not count."""


@dataclass(frozen=True, kw_only=True)
class Quote:
    """The price of a request, by the catalog."""

    price: float | None
    """Of one image; None if unknown."""
    count: int
    unit: str | None

    @property
    def total(self) -> float | None:
        return None if self.price is None else self.price * self.count


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A validated request: what will be ordered, from which providers, and at what price. Made once per request."""

    order: Order
    """Without references: those are stored when the tasks are created."""
    candidates: tuple[str, ...]
    """Names of the providers that can serve it, best first; at least one."""
    quote: Quote
    warnings: tuple[str, ...]
    ignored: tuple[str, ...]
    """Fields, as the native API spells them, that the first candidate cannot use."""
