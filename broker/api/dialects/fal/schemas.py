"""Models of fal's API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from broker.api.dialects.fal.apps import ModelApp
from broker.api.http.request_body import RequestModel
from broker.api.shared.models import Seed, SnakeResponseModel
from broker.notifications.formats.fal import FalDetail
from broker.orders import DataUriReference, ImageParams, OrderRequest, ReferenceSource, UrlReference
from broker.presenter import Absent

SPELLING: Final = {
    "aspectRatio": "aspect_ratio",
    "callbackUrl": "fal_webhook",
    "image": "image_urls",
    "imageUrls": "image_urls",
    "numberOfImages": "num_images",
    "outputFormat": "output_format",
}
"""Names of fields in the native API, as in sentences of the planner → fal's."""


class FalInput(RequestModel):
    """What a client sends to an app; other fields are kept as extra fields."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str
    image_urls: Annotated[list[str] | None, Field(description="addresses or data URIs")] = None
    image_url: str | None = None
    aspect_ratio: str | None = None
    resolution: str | None = None
    output_format: str | None = None
    num_images: int | None = None
    seed: Seed | None = None
    sync_mode: Annotated[bool | None, Field(description="the images come as data URIs")] = None

    def to_order(self, app: ModelApp, **more: Any) -> OrderRequest:
        """Return the order request; the catalog checks its values."""
        return OrderRequest(
            params=ImageParams(
                prompt=self.prompt,
                model=app.model,
                aspect_ratio=self.aspect_ratio,
                resolution=self.resolution,
                output_format=self.output_format,
                seed=self.seed,
            ),
            mode="image-to-image" if app.is_edit else None,
            count=1 if self.num_images is None else self.num_images,
            sources=tuple(self._sources()),
            **more,
        )

    def _sources(self) -> Iterator[ReferenceSource]:
        for url in (*(self.image_urls or ()), *([self.image_url] if self.image_url else [])):
            yield DataUriReference(text=url) if url[:5].lower() == "data:" else UrlReference(url=url)


class FalAddresses(SnakeResponseModel):
    """A request, and its addresses."""

    request_id: str
    gateway_request_id: str
    response_url: str
    status_url: str
    cancel_url: str


class FalTicket(FalAddresses):
    """The answer to a request in the queue."""

    status: Literal["IN_QUEUE"]
    queue_position: int


class FalLog(SnakeResponseModel):
    """A line about the progress of a request."""

    message: str
    level: Literal["INFO", "ERROR"]
    source: str
    timestamp: str


class FalMetrics(SnakeResponseModel):
    inference_time: Annotated[float | Absent, Field(description="seconds at the provider")] = None


class FalStatus(FalAddresses):
    """The state of a request; COMPLETED is also that of a failed one."""

    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    queue_position: Annotated[int | Absent, Field(ge=0, description="while it is in the queue")] = None
    logs: Annotated[list[FalLog] | None, Field(description="null unless asked for")]
    metrics: FalMetrics | Absent = None
    error: str | Absent = None
    error_type: str | Absent = None


class FalCanceled(SnakeResponseModel):
    status: Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED"]


class FalError(SnakeResponseModel):
    """The body of every error."""

    detail: str | list[FalDetail]
    message: Annotated[str, Field(description="the same as one sentence, for clients that read no detail")]
    error_type: str | Absent = None


class FalUploadRequest(RequestModel):
    """What a client says about a file that it is about to send."""

    model_config = ConfigDict(strict=True)

    file_name: str = ""
    content_type: str = ""


class FalUploadUrls(SnakeResponseModel):
    upload_url: Annotated[str, Field(description="takes the bytes by PUT, without a key: it holds its own secret")]
    file_url: Annotated[str, Field(description="stands for the file in orders of the same caller")]


class FalJwk(SnakeResponseModel):
    """A public key (RFC 8037)."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str


class FalJwks(SnakeResponseModel):
    """The keys that sign webhooks."""

    keys: list[FalJwk]
