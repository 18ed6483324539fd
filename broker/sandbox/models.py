"""Models with their fields, prices and pixels, and the validation of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """A request that makes no job, with code and message of the envelope."""

    def __init__(self, code: int, msg: str) -> None:
        super().__init__(msg)
        self.code, self.msg = code, msg


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model as its documentation page describes it.

    first: the 2.5 generation, with its own pixel table and the older field name image_size.
    references: name of the field with reference URLs; None for text only.
    prices: credits by resolution; the keys are the resolutions on offer.
    formats: the first is the default.
    """

    prompt_limit: int
    prices: Mapping[str, float]
    formats: tuple[str, ...]
    first: bool = False
    references: str | None = None
    max_references: int = 0
    references_required: bool = False
    ratios: tuple[str, ...] = RATIOS
    ratio_required: bool = False
    default_ratio: str = "1:1"
    fields: frozenset[str] = field(default=frozenset({"output_format"}))

    def accepted_fields(self) -> set[str]:
        return COMMON | self.fields | ({self.references} if self.references else set())


_FIRST_FIELDS = frozenset({"output_format", "image_size"})
_LATER_FIELDS = frozenset({"output_format", "resolution"})
_ALL_RATIOS = (*RATIOS, *LONG_PIXELS)

MODELS: dict[str, ModelSpec] = {
    "google/nano-banana": ModelSpec(
        prompt_limit=5_000, prices={"1K": 4}, formats=("png", "jpeg"), first=True, fields=_FIRST_FIELDS
    ),
    "google/nano-banana-edit": ModelSpec(
        prompt_limit=5_000,
        prices={"1K": 4},
        formats=("png", "jpeg"),
        first=True,
        references="image_urls",
        max_references=10,
        references_required=True,
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
        ratio_required=True,
        fields=frozenset(),
    ),
}


@dataclass(frozen=True, kw_only=True)
class ValidatedRequest:
    """A validated createTask. ratio may be "auto"; image_format is "png" or "jpeg"."""

    model: str
    prompt: str
    ratio: str
    resolution: str
    image_format: str
    price: float
    seed: int | None
    references: tuple[str, ...]

    def pixels(self, reference: tuple[int, int] | None) -> tuple[int, int]:
        """Return width and height; `reference` is the size of the first reference, which decides "auto"."""
        model = MODELS[self.model]
        ratio = nearest_ratio(reference, model.ratios) if self.ratio == "auto" else self.ratio
        width, height = LONG_PIXELS.get(ratio) or PIXELS[ratio][0 if model.first else 1]
        return width * SCALE[self.resolution], height * SCALE[self.resolution]


def nearest_ratio(size: tuple[int, int] | None, ratios: tuple[str, ...]) -> str:
    """Return the ratio closest to that of an image; 1:1 without one."""
    if size is None:
        return "1:1"
    return min(ratios, key=lambda ratio: abs(_aspect_quotient(ratio) - size[0] / size[1]))


def _aspect_quotient(ratio: str) -> float:
    width, height = ratio.split(":")
    return int(width) / int(height)


def validate_request(request: Any) -> ValidatedRequest:
    """Return the validated body of a createTask, or raise `RejectedRequest` as kie.ai would."""
    if not isinstance(request, dict):
        raise RejectedRequest(400, "the body is not a JSON object")
    name, fields = str(request.get("model")), request.get("input")
    if name not in MODELS:
        raise RejectedRequest(422, "model name not supported")
    if not isinstance(fields, dict):
        raise RejectedRequest(422, "input is required")
    _check_callback(request.get("callBackUrl"))
    return _validate_input(name, MODELS[name], fields)


def _validate_input(name: str, model: ModelSpec, fields: dict[str, Any]) -> ValidatedRequest:
    _check_names(model, fields)
    resolution = _read_choice(fields, "resolution", tuple(model.prices), "1K")
    output_format = _read_choice(fields, "output_format", model.formats, model.formats[0])
    return ValidatedRequest(
        model=name,
        prompt=_read_prompt(model, fields),
        ratio=_read_ratio(model, fields),
        resolution=resolution,
        image_format="png" if output_format == "png" else "jpeg",
        price=model.prices[resolution],
        seed=_read_seed(fields),
        references=_read_references(model, fields),
    )


def _check_names(model: ModelSpec, fields: dict[str, Any]) -> None:
    if strange := sorted(fields.keys() - model.accepted_fields()):
        raise RejectedRequest(422, f"unknown field {strange[0]}")


def _check_callback(url: Any) -> None:
    fine = url is None or (isinstance(url, str) and _is_http(url))
    _require(fine, "callBackUrl is not a valid URL")


def _read_prompt(model: ModelSpec, fields: dict[str, Any]) -> str:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RejectedRequest(422, "prompt is required")
    _require(len(prompt) <= model.prompt_limit, f"prompt is longer than {model.prompt_limit} characters")
    return prompt


def _read_ratio(model: ModelSpec, fields: dict[str, Any]) -> str:
    """Return the ratio; of the two spellings aspect_ratio takes precedence."""
    spelling = "aspect_ratio" if "aspect_ratio" in fields else "image_size"
    _require(spelling in fields or not model.ratio_required, "aspect_ratio is required")
    return _read_choice(fields, spelling, (*model.ratios, "auto"), model.default_ratio)


def _read_choice(fields: dict[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value = fields.get(name, default)
    _require(value in choices, f"{name} is not within the range of allowed options")
    return str(value)


def _read_seed(fields: dict[str, Any]) -> int | None:
    seed = fields.get("seed")
    _require(seed is None or isinstance(seed, int), "seed is not an integer")
    return seed


def _read_references(model: ModelSpec, fields: dict[str, Any]) -> tuple[str, ...]:
    urls = fields.get(model.references, []) if model.references else []
    fine = isinstance(urls, list) and all(isinstance(url, str) and _is_http(url) for url in urls)
    _require(fine, f"{model.references} is not a list of URLs")
    _require(len(urls) <= model.max_references, f"{model.references} has more than {model.max_references} items")
    _require(bool(urls) or not model.references_required, f"{model.references} is required")
    return tuple(urls)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _require(fine: bool, msg: str) -> None:
    if not fine:
        raise RejectedRequest(422, msg)
