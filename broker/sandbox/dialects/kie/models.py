"""Models of kie.ai with their fields and prices, and the validation of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.sandbox.orders import JobOrder, RejectedRequest, is_http_url, require, require_choice
from broker.sandbox.pixels import ALL_RATIOS, RATIOS, sizes_of

COMMON = {"prompt", "aspect_ratio", "seed", "nsfw_checker", "google_search"}


@dataclass(frozen=True, kw_only=True)
class KieModel:
    """One model as its documentation page describes it."""

    prompt_limit: int
    prices: Mapping[str, float]
    """Credits by resolution; the keys are the resolutions on offer."""
    formats: tuple[str, ...]
    """The first is the default."""
    fields: frozenset[str]
    """Fields beside the common ones and the references. Only the 2.5 generation has the older name image_size."""
    references: str = ""
    """Name of the field with reference URLs; empty for text only."""
    min_references: int = 0
    max_references: int = 0
    ratios: tuple[str, ...] = RATIOS
    default_ratio: str | None = "1:1"
    """None where the ratio is required."""


_FIRST_FIELDS = frozenset({"output_format", "image_size"})
_LATER_FIELDS = frozenset({"output_format", "resolution"})

_SECOND = KieModel(
    prompt_limit=20_000,
    prices={"1K": 8, "2K": 12, "4K": 18},
    formats=("jpg", "png"),
    references="image_input",
    max_references=14,
    ratios=ALL_RATIOS,
    default_ratio="auto",
    fields=_LATER_FIELDS,
)

MODELS: dict[str, KieModel] = {
    "google/nano-banana": KieModel(prompt_limit=5_000, prices={"1K": 4}, formats=("png", "jpeg"), fields=_FIRST_FIELDS),
    "google/nano-banana-edit": KieModel(
        prompt_limit=5_000,
        prices={"1K": 4},
        formats=("png", "jpeg"),
        references="image_urls",
        max_references=10,
        min_references=1,
        fields=_FIRST_FIELDS,
    ),
    "nano-banana-pro": KieModel(
        prompt_limit=10_000,
        prices={"1K": 18, "2K": 18, "4K": 24},
        formats=("png", "jpg"),
        references="image_input",
        max_references=8,
        fields=_LATER_FIELDS,
    ),
    "nano-banana-2": _SECOND,
    "nano-banana-2.1": _SECOND,  # its page was not seen: neither the id nor the fields are confirmed
    # The price is undocumented: the lowest documented one stands in. The format cannot be chosen.
    "nano-banana-2-lite": KieModel(
        prompt_limit=20_000,
        prices={"1K": 4},
        formats=("png",),
        references="image_urls",
        max_references=10,
        ratios=ALL_RATIOS,
        default_ratio=None,
        fields=frozenset(),
    ),
}


def validate_request(request: dict[str, Any]) -> JobOrder:
    """Return the order in the body of a createTask, or raise `RejectedRequest` as kie.ai would."""
    name, fields, callback = str(request.get("model")), request.get("input"), request.get("callBackUrl")
    if name not in MODELS:
        raise RejectedRequest(422, "model name not supported")
    if not isinstance(fields, dict):
        raise RejectedRequest(422, "input is required")
    require(callback is None or is_http_url(callback), "callBackUrl is not a valid URL")
    spec = MODELS[name]
    require(fields.keys() <= COMMON | spec.fields | {spec.references}, "input has an unknown field")
    prompt: Any = fields.get("prompt")
    seed, references = fields.get("seed"), fields.get(spec.references, [])
    require(isinstance(prompt, str) and prompt.strip() != "", "prompt is required")
    require(len(prompt) <= spec.prompt_limit, f"prompt is longer than {spec.prompt_limit} characters")
    require(seed is None or isinstance(seed, int), "seed is not an integer")
    are_urls = isinstance(references, list) and all(map(is_http_url, references))
    require(are_urls, f"{spec.references} is not a list of URLs")
    is_count_fine = spec.min_references <= len(references) <= spec.max_references
    require(is_count_fine, f"{spec.references} takes {spec.min_references} to {spec.max_references} items")
    # aspect_ratio takes precedence over its older name
    ratio = fields.get("aspect_ratio", fields.get("image_size", spec.default_ratio))
    ratio = require_choice("aspect_ratio", ratio, (*spec.ratios, "auto"))
    resolution = require_choice("resolution", fields.get("resolution", "1K"), tuple(spec.prices))
    image_format = require_choice("output_format", fields.get("output_format", spec.formats[0]), spec.formats)
    return JobOrder(
        prompt=prompt,
        sizes=sizes_of(
            spec.ratios if ratio == "auto" else [ratio], resolution, first_generation="image_size" in spec.fields
        ),
        image_format="png" if image_format == "png" else "jpeg",
        price=spec.prices[resolution],
        seed=seed,
        references=tuple(references),
        callback_url=callback,
    )
