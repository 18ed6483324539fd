"""Models of the image service."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from broker.api.http.pagination import PageQuery
from broker.api.http.query import EMPTY, ParsedText
from broker.api.http.request_body import RequestModel
from broker.api.shared.models import Seed, SnakeResponseModel
from broker.orders import DataUriReference, ImageParams, OrderRequest, ReferenceSource, UrlReference
from broker.presenter import Moment

DEFAULT_MODEL: Final = "nano-banana-pro"
DEFAULT_MODE: Final = "text-to-image"
DEFAULT_RATIO: Final = "1:1"
DEFAULT_RESOLUTION: Final = "1K"
USED_FIELDS: Final = {"aspectRatio": "aspect_ratio", "seed": "seed"}
"""Name of a field in the native API → in this one."""
_URL: Final = re.compile(r"https?://|/uploads/(image|reference)s/", re.IGNORECASE)

Status = Literal["pending", "running", "completed", "failed"]


class ImageServiceRequest(RequestModel):
    """What a client of the image service sends; other fields are kept as extra fields."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    prompt: str
    resolution: Annotated[str | None, Field(description="1K by default")] = None
    aspect_ratio: Annotated[str | None, Field(description="1:1 by default")] = None
    generation_mode: Annotated[
        Literal["text-to-image", "image-to-image"] | None,
        Field(description="image-to-image needs an image; otherwise the images decide"),
    ] = None
    reference_images: Annotated[list[str] | None, Field(description="addresses, data URIs, or base64")] = None
    model_name: str | None = None
    seed: Seed | None = None

    @property
    def ignored(self) -> list[str]:
        return list(self.model_extra or ())

    def to_order(self) -> OrderRequest:
        """Return the order request; the catalog checks its values."""
        return OrderRequest(
            params=ImageParams(
                prompt=self.prompt,
                model=self.model_name or DEFAULT_MODEL,
                aspect_ratio=self.aspect_ratio or DEFAULT_RATIO,
                resolution=self.resolution or DEFAULT_RESOLUTION,
                seed=self.seed,
            ),
            mode=self.generation_mode if self.generation_mode == "image-to-image" else None,
            sources=tuple(read_reference(text) for text in self.reference_images or ()),
            origin={"dialect": "image_service"},
        )


class ImageServiceAccepted(SnakeResponseModel):
    status: Status
    image_id: str
    image_url: None
    message: str


class ImageServiceImage(SnakeResponseModel):
    """A generation."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    image_id: Annotated[str, Field(description="the same")]
    user_id: Annotated[str, Field(description="the owner: the id of a user or of a key")]
    status: Status
    prompt: str
    generation_mode: str
    resolution: str | None
    aspect_ratio: str | None
    model_name: str
    seed: int | None
    result_url: Annotated[str | None, Field(description="the address of the first image")]
    image_url: Annotated[str | None, Field(description="the same")]
    image_urls: list[str]
    error_message: str | None
    created_at: Moment
    completed_at: Moment | None


class ImageServiceMeta(SnakeResponseModel):
    shown: int
    limit: int
    offset: int
    has_more: bool


class ImageServiceList(SnakeResponseModel):
    generations: list[ImageServiceImage]
    meta: ImageServiceMeta


class ImageServiceDeleted(SnakeResponseModel):
    message: str
    image_id: str


MAX_OFFSET: Final = 1000


def _parse_offset(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) > MAX_OFFSET:
        raise ValueError(f"must be a whole number up to {MAX_OFFSET}")
    return int(text)


_OFFSET_TEXT: Final = ParsedText(
    _parse_offset, {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_OFFSET}, EMPTY]}
)


class ImageServiceListQuery(PageQuery):
    offset: Annotated[int, _OFFSET_TEXT, Field(description="how many newer ones to leave out")] = 0


def read_reference(text: str) -> ReferenceSource:
    """Return the reference image in a text: an address, a data URI, or base64 alone."""
    if _URL.match(text):
        return UrlReference(url=text)
    # the type comes from the content, not from the URI
    return DataUriReference(text=text if text.startswith("data:") else f"data:image/png;base64,{text}")
