"""Models of WaveSpeed with their fields, and the validation of orders. Prices were not seen: round ones stand in."""

from __future__ import annotations

from typing import Any

from broker.sandbox.orders import JobOrder, RejectedRequest, is_http_url, require, require_choice
from broker.sandbox.pixels import ALL_RATIOS, RATIOS, sizes_of

FIELDS = {"prompt", "aspect_ratio", "output_format", "enable_sync_mode", "enable_base64_output"}
RATIOS_OF = {
    "nano-banana": RATIOS,
    "nano-banana-pro": RATIOS,
    "nano-banana-2": ALL_RATIOS,
    "nano-banana-2.1": ALL_RATIOS,
}
PRICES = {"1k": 0.1, "2k": 0.1, "4k": 0.2}
MAX_REFERENCES = 14


def validate_order(name: str, mode: str, fields: dict[str, Any], webhook: str | None) -> JobOrder:
    """Return the order of a model, or raise `RejectedRequest` as WaveSpeed would. mode: the last part of its path."""
    if name not in RATIOS_OF or mode not in {"text-to-image", "edit"}:
        raise RejectedRequest(404, "model not found")
    is_first = name == "nano-banana"
    known = FIELDS | ({"images"} if mode == "edit" else set()) | (set() if is_first else {"resolution"})
    known |= {"enable_web_search"} if RATIOS_OF[name] is ALL_RATIOS else set()
    require(fields.keys() <= known, "the input has an unknown field", 400)
    prompt: Any = fields.get("prompt")
    require(isinstance(prompt, str) and prompt != "", "prompt is required", 400)
    require(webhook is None or is_http_url(webhook), "webhook is not a valid URL", 400)
    images: Any = fields.get("images", [])
    are_usable = isinstance(images, list) and all(map(is_http_url, images))
    require(are_usable and (mode != "edit" or 0 < len(images) <= MAX_REFERENCES), "images must be 1 to 14 URLs", 400)
    ratio = fields.get("aspect_ratio")
    require(ratio is None or ratio in RATIOS_OF[name], "aspect_ratio is not an allowed value", 400)
    resolution = require_choice("resolution", fields.get("resolution", "1k"), tuple(PRICES))
    image_format = require_choice("output_format", fields.get("output_format", "png"), ("png", "jpeg"))
    return JobOrder(
        prompt=prompt,
        sizes=sizes_of([ratio] if ratio else RATIOS_OF[name], resolution.upper(), first_generation=is_first),
        image_format="png" if image_format == "png" else "jpeg",
        price=PRICES[resolution],
        references=tuple(images),
        callback_url=webhook,
    )
