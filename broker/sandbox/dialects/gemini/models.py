"""Validation of generateContent, by model (ai.google.dev: Image generation)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.sandbox.orders import JobOrder, RejectedRequest, require, require_choice
from broker.sandbox.pixels import ALL_RATIOS, RATIOS, sizes_of

MEDIA_TYPES: Final = ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif")


@dataclass(frozen=True, kw_only=True)
class GeminiModel:
    """Limits of one model, and its price of an image in USD by size."""

    ratios: tuple[str, ...]
    prices: Mapping[str, float]
    max_references: int = 14
    takes_size: bool = True
    is_first_generation: bool = False
    needs_signatures: bool = True
    """True if a turn of the model must come back with its signatures."""


MODELS: Final[Mapping[str, GeminiModel]] = {
    "gemini-2.5-flash-image": GeminiModel(
        ratios=RATIOS,
        prices={"1K": 0.039},
        max_references=3,
        takes_size=False,
        is_first_generation=True,
        needs_signatures=False,
    ),
    "gemini-3-pro-image": GeminiModel(ratios=RATIOS, prices={"1K": 0.134, "2K": 0.134, "4K": 0.24}),
    "gemini-3.1-flash-image": GeminiModel(ratios=ALL_RATIOS, prices={"1K": 0.067, "2K": 0.101, "4K": 0.151}),
    "gemini-3.1-flash-lite-image": GeminiModel(ratios=ALL_RATIOS, prices={"1K": 0.0336}, takes_size=False),
    "gemini-nano-banana-2.1": GeminiModel(ratios=ALL_RATIOS, prices={"1K": 0.0336, "2K": 0.0504, "4K": 0.1134}),
}


def signature_of(image: bytes) -> str:
    """Return the signature of an image that the model makes; no other one is accepted for it."""
    return base64.b64encode(b"an opaque state of the model /+ " * 8 + hashlib.sha256(image).digest()).decode()


@dataclass(frozen=True, kw_only=True)
class GeminiRequest:
    """A validated request. references: bytes of the images; the order names them once they are stored."""

    order: JobOrder
    references: tuple[bytes, ...]
    size: str


def validate_request(model_id: str, body: Mapping[str, Any]) -> GeminiRequest:
    """Return what a request orders. Raises `RejectedRequest`."""
    model = MODELS.get(model_id)
    if model is None:
        raise RejectedRequest(404, f"models/{model_id} is not found for API version v1beta")
    contents = _mappings(body.get("contents"))
    require(bool(contents), "contents is not specified", 400)
    parts = [part for content in contents for part in _mappings(content.get("parts"))]
    if model.needs_signatures:
        _check_signatures(contents)
    prompt = "\n".join(str(part["text"]) for part in parts if "text" in part)
    require(bool(prompt), "the request has no text", 400)
    references = tuple(_decode_image(image) for part in parts if (image := _value(part, "inlineData", "inline_data")))
    require(len(references) <= model.max_references, f"at most {model.max_references} images are supported", 400)
    config = _value(body, "generationConfig", "generation_config")
    modalities = _value(config, "responseModalities", "response_modalities")
    require("IMAGE" in (modalities or ()), "the model answers with images only if responseModalities has IMAGE", 400)
    image_config = _value(config, "imageConfig", "image_config")
    ratio, size = (
        _value(image_config, *names) for names in (("aspectRatio", "aspect_ratio"), ("imageSize", "image_size"))
    )
    require(size is None or model.takes_size, "image_size is not supported by this model", 400)
    size = _choice("image_size", size, tuple(model.prices)) if size else "1K"
    ratios = (_choice("aspect_ratio", ratio, model.ratios),) if ratio else model.ratios
    order = JobOrder(
        prompt=prompt,
        sizes=sizes_of(ratios, size, first_generation=model.is_first_generation),
        image_format="png",
        price=model.prices[size],
    )
    return GeminiRequest(order=order, references=references, size=size)


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    try:
        return require_choice(name, value, choices)
    except RejectedRequest as error:
        raise RejectedRequest(400, error.msg) from None


def shown_contents(contents: Any) -> list[dict[str, Any]]:
    """Return contents with the SHA-256 of each image in its place, for the record of a job."""
    return [
        {**content, "parts": [_shown_part(part) for part in _mappings(content.get("parts"))]}
        for content in _mappings(contents)
    ]


def _shown_part(part: Mapping[str, Any]) -> dict[str, Any]:
    image = _value(part, "inlineData", "inline_data")
    rest = {name: value for name, value in part.items() if name not in {"inlineData", "inline_data"}}
    return rest | ({"image": hashlib.sha256(_decode_image(image)).hexdigest()} if image else {})


def _check_signatures(contents: Sequence[Mapping[str, Any]]) -> None:
    """Require the signature of every image in a turn of the model, as it was given to it."""
    for position, content in enumerate(contents, start=1):
        for number, part in enumerate(_mappings(content.get("parts")), start=1):
            if content.get("role") == "model" and _value(part, "inlineData", "inline_data"):
                image = _decode_image(_value(part, "inlineData", "inline_data"))
                written = part.get("thoughtSignature") or part.get("thought_signature")
                text = (
                    f"Image part is missing a thought_signature in content position {position}, part position {number}"
                )
                require(bool(written), text, 400)
                require(written == signature_of(image), "Thought signature is not valid", 400)


def _decode_image(image: Mapping[str, Any]) -> bytes:
    media_type = image.get("mimeType") or image.get("mime_type")
    require(media_type in MEDIA_TYPES, f"Unsupported MIME type: {media_type}", 400)
    text = str(image.get("data", "")).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise RejectedRequest(400, "Base64 decoding failed") from None


def _value(place: Any, *names: str) -> Any:
    place = place if isinstance(place, dict) else {}
    found = next((place[name] for name in names if place.get(name) is not None), None)
    return found if found is not None else {} if names[0].endswith("Config") else None


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
