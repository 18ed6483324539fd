"""Apps of fal with their fields and prices, and the validation of inputs.

fal validates an input when a runner takes it, and the job fails; here an invalid one is rejected at once, with the same
error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from broker.sandbox.orders import ImageFormat, JobOrder, RejectedRequest, is_http_url, require, require_choice
from broker.sandbox.pixels import ALL_RATIOS, RATIOS, sizes_of

COMMON = {
    *("prompt", "num_images", "seed", "aspect_ratio", "output_format", "safety_tolerance", "sync_mode"),
    *("limit_generations", "system_prompt", "enable_web_search", "thinking_level"),
}
FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")
MAX_PROMPT_CHARACTERS = 50_000


@dataclass(frozen=True, kw_only=True)
class FalApp:
    """One app as its page describes it."""

    prices: Mapping[str, float]
    """USD by resolution; the keys are the resolutions on offer."""
    ratios: tuple[str, ...]
    has_auto: bool = True
    """The ratio auto exists without a reference, too."""
    default_ratio: Literal["1:1", "auto"] = "auto"
    """Without references; with them it is auto."""
    max_references: int = 14
    first_generation: bool = False


_FIRST = FalApp(
    prices={"1K": 0.039},
    ratios=RATIOS,
    has_auto=False,
    default_ratio="1:1",
    max_references=3,
    first_generation=True,
)
_PRO = FalApp(prices={"1K": 0.15, "2K": 0.15, "4K": 0.30}, ratios=RATIOS, default_ratio="1:1")
_SECOND = FalApp(prices={"0.5K": 0.06, "1K": 0.08, "2K": 0.12, "4K": 0.16}, ratios=ALL_RATIOS)
_LITE = FalApp(prices={"1K": 0.04}, ratios=ALL_RATIOS)  # the price was not seen
_LATEST = FalApp(prices={"1K": 0.04, "2K": 0.06, "4K": 0.134}, ratios=ALL_RATIOS)

APPS: Mapping[str, FalApp] = {
    "fal-ai/nano-banana": _FIRST,
    "fal-ai/gemini-25-flash-image": _FIRST,
    "fal-ai/nano-banana-pro": _PRO,
    "fal-ai/gemini-3-pro-image-preview": _PRO,
    "fal-ai/nano-banana-2": _SECOND,
    "fal-ai/gemini-3.1-flash-image-preview": _SECOND,
    "google/nano-banana-lite": _LITE,
    "google/nano-banana-2-lite": _LITE,
    "google/nano-banana-2.1": _LATEST,
}


def validate_input(name: str, is_edit: bool, fields: dict[str, Any], webhook: str | None) -> JobOrder:
    """Return the order of an app, or raise `RejectedRequest` as fal would."""
    if name not in APPS:
        raise RejectedRequest(404, f"Application '{name.rpartition('/')[2]}' not found")
    app = APPS[name]
    require(webhook is None or is_http_url(webhook), "fal_webhook is not a valid URL")
    known = COMMON | ({"image_urls"} if is_edit else set()) | ({"resolution"} if len(app.prices) > 1 else set())
    require(fields.keys() <= known, "the input has an unknown field")
    prompt: Any = fields.get("prompt")
    seed, count = fields.get("seed"), fields.get("num_images", 1)
    require(isinstance(prompt, str) and 0 < len(prompt) <= MAX_PROMPT_CHARACTERS, "prompt is required")
    require(seed is None or isinstance(seed, int), "seed is not an integer")
    require(isinstance(count, int) and 1 <= count <= 4, "num_images must be from 1 to 4")
    default_ratio = "auto" if is_edit else app.default_ratio
    ratios = (*app.ratios, "auto") if is_edit or app.has_auto else app.ratios
    ratio = require_choice("aspect_ratio", fields.get("aspect_ratio", default_ratio), ratios)
    resolution = require_choice("resolution", fields.get("resolution", "1K"), tuple(app.prices))
    image_format = require_choice("output_format", fields.get("output_format", "png"), FORMATS)
    return JobOrder(
        prompt=prompt,
        sizes=sizes_of(app.ratios if ratio == "auto" else [ratio], resolution, first_generation=app.first_generation),
        image_format=next(one for one in FORMATS if one == image_format),
        price=app.prices[resolution] * count,
        count=count,
        seed=seed,
        references=_references(app, fields.get("image_urls")) if is_edit else (),
        callback_url=webhook,
    )


def _references(app: FalApp, urls: Any) -> tuple[str, ...]:
    """Return the references of an edit: URLs, or data URIs."""
    require(isinstance(urls, list) and all(isinstance(url, str) for url in urls), "image_urls is required")
    require(all(url.startswith("data:") or is_http_url(url) for url in urls), "image_urls are not URLs")
    require(1 <= len(urls) <= app.max_references, f"image_urls takes 1 to {app.max_references} items")
    return tuple(urls)
