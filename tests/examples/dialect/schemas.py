"""Models of the example dialect: its request, its response, its error."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from broker.orders import ImageParams
from broker.presenter import ResponseModel


class ImageRequest(BaseModel):
    """What a caller sends."""

    text: str
    shape: str | None = None

    def to_params(self) -> ImageParams:
        """Return the parameters in the broker's terms; the catalog checks their values."""
        return ImageParams(prompt=self.text, aspect_ratio=self.shape)


class ImageJob(ResponseModel):
    """A task, as the dialect shows it."""

    id: str
    state: Literal["running", "done", "failed"]
    images: list[str]
    """Paths, in order."""


class Problem(ResponseModel):
    """An error: its code and a sentence."""

    kind: str
    text: str


class ErrorBody(ResponseModel):
    """The body of every error."""

    problem: Problem
