"""Models of BananaService."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from broker.api.http.request_body import RequestModel
from broker.api.shared.models import SnakeResponseModel
from broker.ordering.own_images import OWN_PREFIX
from broker.orders import DataUriReference, ImageParams, OrderRequest

DEFAULT_MODEL = "gemini-3-pro-image-preview"


class BananaServiceRequest(RequestModel):
    """What a client of BananaService sends; other fields are kept as extra fields."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str
    image_base64: Annotated[str | None, Field(description="a data URI, or base64 alone")] = None
    model: str | None = None
    number_of_images: int | None = None

    def to_order(self) -> OrderRequest:
        """Return the order request; the catalog checks its values."""
        return OrderRequest(
            params=ImageParams(prompt=self.prompt, model=self.model or DEFAULT_MODEL),
            count=1 if self.number_of_images is None else self.number_of_images,
            sources=(DataUriReference(text=as_data_uri(self.image_base64)),) if self.image_base64 else (),
            origin={"dialect": "banana_service"},
        )


class BananaServiceImages(SnakeResponseModel):
    images: Annotated[list[str], Field(description="base64")]
    metadata: None


def as_data_uri(text: str) -> str:
    """Return base64 as a data URI, and a path of ours as it is; the type comes from the content, not from the URI."""
    return text if text.startswith(("data:", OWN_PREFIX)) else f"data:image/png;base64,{text}"
