"""Endpoints of nanobananaapi.ai with their fields, and the validation of orders.

Its prices were not seen: those of kie.ai, of the same family, stand in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.sandbox.orders import JobOrder, RejectedRequest, is_http_url, require, require_choice
from broker.sandbox.pixels import ALL_RATIOS, RATIOS, sizes_of

TYPES = ("TEXTTOIAMGE", "IMAGETOIAMGE")
"""The misspelling is the documented value."""
COMMON = {"prompt", "imageUrls", "callBackUrl"}


@dataclass(frozen=True, kw_only=True)
class GenerateEndpoint:
    """One endpoint as its page describes it."""

    fields: frozenset[str]
    """Beside the common ones."""
    ratio_field: str
    prices: Mapping[str, float]
    ratios: tuple[str, ...] = RATIOS
    max_references: int = 10
    default_format: str = "jpg"


ENDPOINTS = {
    "generate": GenerateEndpoint(
        fields=frozenset({"type", "numImages", "image_size", "watermark"}), ratio_field="image_size", prices={"1K": 4}
    ),
    "generate-pro": GenerateEndpoint(
        fields=frozenset({"resolution", "aspectRatio"}),
        ratio_field="aspectRatio",
        prices={"1K": 18, "2K": 18, "4K": 24},
        max_references=8,
    ),
    "generate-2": GenerateEndpoint(
        fields=frozenset({"resolution", "aspectRatio", "googleSearch", "outputFormat"}),
        ratio_field="aspectRatio",
        prices={"1K": 8, "2K": 12, "4K": 18},
        ratios=(*ALL_RATIOS, "auto"),
        max_references=14,
    ),
}


def validate_order(name: str, fields: dict[str, Any]) -> JobOrder:
    """Return the order in the body of a request to an endpoint, or raise `RejectedRequest`."""
    if name not in ENDPOINTS:
        raise RejectedRequest(404, "Not Found")
    endpoint = ENDPOINTS[name]
    require(fields.keys() <= COMMON | endpoint.fields, "the body has an unknown field")
    prompt: Any = fields.get("prompt")
    require(isinstance(prompt, str) and 0 < len(prompt) <= 20_000, "prompt is required")
    callback = fields.get("callBackUrl")
    require(callback is None or is_http_url(callback), "callBackUrl is not a valid URL")
    references: Any = fields.get("imageUrls", [])
    are_urls = isinstance(references, list) and all(map(is_http_url, references))
    require(are_urls and len(references) <= endpoint.max_references, "imageUrls is not a list of URLs, or too long")
    if "type" in endpoint.fields:
        kind = require_choice("type", fields.get("type"), TYPES)
        require(bool(references) == (kind == TYPES[1]), "imageUrls is required for IMAGETOIAMGE, and only there")
    count = fields.get("numImages", 1)
    require(count in (1, 2, 3, 4), "numImages must be 1 to 4")
    ratio = require_choice(endpoint.ratio_field, fields.get(endpoint.ratio_field, "1:1"), endpoint.ratios)
    resolution = require_choice("resolution", fields.get("resolution", "1K"), tuple(endpoint.prices))
    image_format = require_choice("outputFormat", fields.get("outputFormat", endpoint.default_format), ("png", "jpg"))
    return JobOrder(
        prompt=prompt,
        sizes=sizes_of(ALL_RATIOS if ratio == "auto" else [ratio], resolution, first_generation=name == "generate"),
        image_format="png" if image_format == "png" else "jpeg",
        price=endpoint.prices[resolution] * count,
        count=count,
        references=tuple(references),
        callback_url=callback,
    )
