"""Models of Replicate with their fields and prices, and the validation of predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from broker.sandbox.orders import JobOrder, RejectedRequest, is_http_url, require, require_choice
from broker.sandbox.pixels import ALL_RATIOS, RATIOS, sizes_of

MATCH_INPUT = "match_input_image"
FIELDS = {"prompt", "image_input", "aspect_ratio", "output_format"}
EVENTS = ("start", "output", "logs", "completed")


@dataclass(frozen=True, kw_only=True)
class ReplicateModel:
    """One official model as its page describes it."""

    prices: dict[str, float]
    """USD by resolution; the keys are the resolutions on offer."""
    default_resolution: str = "1K"
    ratios: tuple[str, ...] = RATIOS
    max_references: int = 14
    fields: frozenset[str] = frozenset({"resolution"})
    """Beside the common ones."""


MODELS = {
    "google/nano-banana": ReplicateModel(prices={"1K": 0.039}, fields=frozenset(), max_references=10),
    "google/nano-banana-2": ReplicateModel(
        prices={"1K": 0.067, "2K": 0.101, "4K": 0.151},
        ratios=ALL_RATIOS,
        fields=frozenset({"resolution", "google_search", "image_search"}),
    ),
    "google/nano-banana-pro": ReplicateModel(
        prices={"1K": 0.15, "2K": 0.15, "4K": 0.30},
        default_resolution="2K",
        fields=frozenset({"resolution", "safety_filter_level", "allow_fallback_model"}),
    ),
}


def validate_prediction(name: str, request: dict[str, Any]) -> JobOrder:
    """Return the order in the body of a prediction, or raise `RejectedRequest` as Replicate would."""
    if name not in MODELS:
        raise RejectedRequest(404, "The requested resource could not be found.")
    model, fields = MODELS[name], request.get("input")
    if not isinstance(fields, dict):
        raise RejectedRequest(422, "input is required")
    require(fields.keys() <= FIELDS | model.fields, "input: additional properties are not allowed")
    prompt: Any = fields.get("prompt")
    require(isinstance(prompt, str) and prompt != "", "input.prompt is required")
    references: Any = fields.get("image_input", [])
    are_uris = isinstance(references, list) and all(map(_is_uri, references))
    require(are_uris, "input.image_input must be an array of URIs")
    require(len(references) <= model.max_references, f"input.image_input takes at most {model.max_references} items")
    ratio = require_choice("input.aspect_ratio", fields.get("aspect_ratio", MATCH_INPUT), (*model.ratios, MATCH_INPUT))
    resolution = fields.get("resolution", model.default_resolution)
    resolution = require_choice("input.resolution", resolution, tuple(model.prices))
    image_format = require_choice("input.output_format", fields.get("output_format", "jpg"), ("jpg", "png"))
    return JobOrder(
        prompt=prompt,
        sizes=sizes_of(
            model.ratios if ratio == MATCH_INPUT else [ratio],
            resolution,
            first_generation="resolution" not in model.fields,
        ),
        image_format="png" if image_format == "png" else "jpeg",
        price=model.prices[resolution],
        references=tuple(references),
        callback_url=_validate_webhook(request),
    )


def _validate_webhook(request: dict[str, Any]) -> str | None:
    """Return the webhook, if the event that this emulator sends, `completed`, is among those asked for."""
    url, events = request.get("webhook"), request.get("webhook_events_filter", ["completed"])
    require(url is None or _is_public(url), "webhook must be an HTTPS URL")
    require(isinstance(events, list) and all(event in EVENTS for event in events), "webhook_events_filter is invalid")
    return url if "completed" in events else None


def _is_uri(value: Any) -> bool:
    return is_http_url(value) or (isinstance(value, str) and value.startswith("data:"))


def _is_public(url: Any) -> bool:
    """Return True for HTTPS, and for HTTP on this machine, which replaces it here."""
    return is_http_url(url) and str(url).startswith(
        ("https://", "http://127.0.0.1", "http://localhost", "http://[::1]")
    )
