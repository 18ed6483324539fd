"""Sizes of the OpenAI API as ratios and resolutions of a model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from broker.catalog import Model, quote_text
from broker.errors import ApiError

_SIZE: Final = re.compile(r"([1-9][0-9]{0,4})[xX×]([1-9][0-9]{0,4})")
AUTO: Final = "auto"
MAX_EXCESS: Final = 2.1
"""A resolution is taken if it has at most so many times the pixels that were asked for. Twice would be the nearest one;
with a little more, OpenAI's largest size, 3840x2160, is 4K."""
_QUALITIES: Final = {"low": 0, "standard": 0, "medium": 1, "hd": 1, "high": 2, "xhigh": 2, "max": 2}
"""Positions in the resolutions of a model."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """None: the model's default."""

    aspect_ratio: str | None = None
    resolution: str | None = None
    is_quality_used: bool = False


def choose_shape(model: Model, size: str | None, quality: str | None) -> Shape:
    """Return the ratio and resolution of a model that are nearest to a size; quality counts if that is left open.

    size: `WIDTHxHEIGHT`, `auto` or nothing. Raises `ApiError` for another text.
    """
    if not size or size == AUTO:
        position = _QUALITIES.get(quality or "")
        if position is None or len(model.resolutions) == 1:
            return Shape()
        last = len(model.resolutions) - 1
        return Shape(resolution=model.resolutions[min(position, last)], is_quality_used=True)
    match = _SIZE.fullmatch(size)
    if match is None:
        text = f'{quote_text(size)} is no size: use "WIDTHxHEIGHT", like "1024x1024", or "auto".'
        raise ApiError("unsupported_parameter", text, field="size")
    width, height = int(match[1]), int(match[2])
    ratio = nearest_ratio(model, width / height)
    return Shape(aspect_ratio=ratio, resolution=nearest_resolution(model, ratio, width * height))


def nearest_ratio(model: Model, ratio: float) -> str:
    def distance(name: str) -> float:
        width, _, height = name.partition(":")
        return abs(math.log(int(width) / int(height) / ratio))

    return min((name for name in model.aspect_ratios if ":" in name), key=distance)


def nearest_resolution(model: Model, ratio: str, pixels: int) -> str | None:
    """Return the largest resolution that is not far larger; None if the model has only one."""
    if len(model.resolutions) == 1:
        return None
    areas = {name: math.prod(size) for name in model.resolutions if (size := model.pixel_size(ratio, name))}
    fitting = [name for name, area in areas.items() if area <= MAX_EXCESS * pixels]
    return max(fitting, key=areas.__getitem__) if fitting else model.resolutions[0]
