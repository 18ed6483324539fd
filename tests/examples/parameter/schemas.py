"""The request of the example dialect, with one more parameter."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from broker.orders import ImageParams
from tests.examples.dialect.schemas import ImageRequest


class GuidedRequest(ImageRequest):
    """What a caller sends."""

    model: str
    guidance: float | None = Field(None, ge=0, le=20)

    def to_params(self) -> ImageParams:
        return replace(super().to_params(), model=self.model, extra={"guidance": self.guidance})
