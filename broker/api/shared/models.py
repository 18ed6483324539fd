"""Base of the response models of dialects that spell names in snake_case."""

from __future__ import annotations

from pydantic import ConfigDict

from broker.presenter import ResponseModel


class SnakeResponseModel(ResponseModel):
    """JSON with exactly the declared keys, in snake_case."""

    model_config = ConfigDict(alias_generator=None)
