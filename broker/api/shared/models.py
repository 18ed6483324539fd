"""What models of several dialects have in common."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import ConfigDict, Field

from broker.presenter import ResponseModel

MAX_SAFE_INTEGER: Final = 2**53 - 1
"""Largest integer that every JSON parser reads exactly."""
Seed = Annotated[int, Field(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)]


class SnakeResponseModel(ResponseModel):
    """Base of responses: JSON with exactly the declared keys, in snake_case."""

    model_config = ConfigDict(alias_generator=None)
