"""Models with their fields, prices and pixels, and the validation of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

# Ratio -> pixels of nano-banana, pixels of the later models at 1K; 2K and 4K are exactly twice and four times that.
PIXELS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "1:1": ((1024, 1024), (1024, 1024)),
    "2:3": ((832, 1248), (848, 1264)),
    "3:2": ((1248, 832), (1264, 848)),
    "3:4": ((864, 1184), (896, 1200)),
    "4:3": ((1184, 864), (1200, 896)),
    "4:5": ((896, 1152), (928, 1152)),
    "5:4": ((1152, 896), (1152, 928)),
    "9:16": ((768, 1344), (768, 1376)),
    "16:9": ((1344, 768), (1376, 768)),
    "21:9": ((1536, 672), (1584, 672)),
}
LONG_PIXELS = {"1:4": (512, 2048), "4:1": (2048, 512), "1:8": (384, 3072), "8:1": (3072, 384)}
RATIOS = tuple(PIXELS)
SCALE = {"1K": 1, "2K": 2, "4K": 4}
COMMON = {"prompt", "aspect_ratio", "seed", "nsfw_checker", "google_search"}


class RejectedRequest(Exception):
    """A request without effect, with the HTTP status, the code and the message of its response."""

    def __init__(self, code: int, msg: str, *, status: int = 200) -> None:
        super().__init__(msg)
        self.code, self.msg, self.status = code, msg, status


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
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
_ALL_RATIOS = (*RATIOS, *LONG_PIXELS)

MODELS: dict[str, ModelSpec] = {
    "google/nano-banana": ModelSpec(
        prompt_limit=5_000, prices={"1K": 4}, formats=("png", "jpeg"), fields=_FIRST_FIELDS
    ),
    "google/nano-banana-edit": ModelSpec(
        prompt_limit=5_000,
        prices={"1K": 4},
        formats=("png", "jpeg"),
        references="image_urls",
        max_references=10,
        min_references=1,
        fields=_FIRST_FIELDS,
    ),
    "nano-banana-pro": ModelSpec(
        prompt_limit=10_000,
        prices={"1K": 18, "2K": 18, "4K": 24},
        formats=("png", "jpg"),
        references="image_input",
        max_references=8,
        fields=_LATER_FIELDS,
    ),
    "nano-banana-2": ModelSpec(
        prompt_limit=20_000,
        prices={"1K": 8, "2K": 12, "4K": 18},
        formats=("jpg", "png"),
        references="image_input",
        max_references=14,
        ratios=_ALL_RATIOS,
        default_ratio="auto",
        fields=_LATER_FIELDS,
    ),
    # The price is undocumented: the lowest documented one stands in. The format cannot be chosen.
    "nano-banana-2-lite": ModelSpec(
        prompt_limit=20_000,
        prices={"1K": 4},
        formats=("png",),
        references="image_urls",
        max_references=10,
        ratios=_ALL_RATIOS,
        default_ratio=None,
        fields=frozenset(),
    ),
}


@dataclass(frozen=True, kw_only=True)
class ValidatedRequest:
    """A validated createTask."""

    model: str
    prompt: str
    ratio: str
    """One of the model's ratios, or "auto"."""
    resolution: str
    image_format: str
    """png or jpeg."""
    seed: int | None
    references: tuple[str, ...]

    @property
    def price(self) -> float:
        return MODELS[self.model].prices[self.resolution]

    def pixels(self, reference: tuple[int, int] | None) -> tuple[int, int]:
        """Return width and height; `reference` is the size of the first reference, which decides "auto"."""
        spec = MODELS[self.model]
        ratio = nearest_ratio(reference, spec.ratios) if self.ratio == "auto" else self.ratio
        width, height = LONG_PIXELS.get(ratio) or PIXELS[ratio][0 if "image_size" in spec.fields else 1]
        return width * SCALE[self.resolution], height * SCALE[self.resolution]


def nearest_ratio(size: tuple[int, int] | None, ratios: tuple[str, ...]) -> str:
    """Return the ratio closest to that of an image; 1:1 without one."""
    if size is None:
        return "1:1"
    return min(ratios, key=lambda ratio: abs(Fraction(ratio.replace(":", "/")) - Fraction(*size)))


def validate_request(request: dict[str, Any]) -> ValidatedRequest:
    """Return the validated body of a createTask, or raise `RejectedRequest` as kie.ai would."""
    name, fields, callback = str(request.get("model")), request.get("input"), request.get("callBackUrl")
    if name not in MODELS:
        raise RejectedRequest(422, "model name not supported")
    if not isinstance(fields, dict):
        raise RejectedRequest(422, "input is required")
    _require(callback is None or _is_http_url(callback), "callBackUrl is not a valid URL")
    spec = MODELS[name]
    _require(fields.keys() <= COMMON | spec.fields | {spec.references}, "input has an unknown field")
    prompt: Any = fields.get("prompt")
    seed, references = fields.get("seed"), fields.get(spec.references, [])
    _require(isinstance(prompt, str) and prompt.strip() != "", "prompt is required")
    _require(len(prompt) <= spec.prompt_limit, f"prompt is longer than {spec.prompt_limit} characters")
    _require(seed is None or isinstance(seed, int), "seed is not an integer")
    are_urls = isinstance(references, list) and all(map(_is_http_url, references))
    _require(are_urls, f"{spec.references} is not a list of URLs")
    is_count_fine = spec.min_references <= len(references) <= spec.max_references
    _require(is_count_fine, f"{spec.references} takes {spec.min_references} to {spec.max_references} items")
    # aspect_ratio takes precedence over its older name
    ratio = fields.get("aspect_ratio", fields.get("image_size", spec.default_ratio))
    return ValidatedRequest(
        model=name,
        prompt=prompt,
        ratio=_require_choice("aspect_ratio", ratio, (*spec.ratios, "auto")),
        resolution=_require_choice("resolution", fields.get("resolution", "1K"), tuple(spec.prices)),
        image_format=_require_choice(
            "output_format", fields.get("output_format", spec.formats[0]), spec.formats
        ).replace("jpg", "jpeg"),
        seed=seed,
        references=tuple(references),
    )


def _require(fine: bool, msg: str) -> None:
    if not fine:
        raise RejectedRequest(422, msg)


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    _require(value in choices, f"{name} is not within the range of allowed options")
    return str(value)


def _is_http_url(url: Any) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except (ValueError, TypeError, AttributeError):
        return False
