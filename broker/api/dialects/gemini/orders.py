"""From a request to an order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker.api.dialects.gemini.contents import read_conversation
from broker.api.dialects.gemini.requests import GenerateContentRequest
from broker.api.shared.dialect import find_named
from broker.catalog import Catalog
from broker.ordering.offers import most_references
from broker.orders import ImageParams, OrderRequest

MAX_IMAGES: Final[Mapping[str, int]] = {"nano-banana": 3}
"""Input images of one turn, where Google takes fewer than other providers."""

SPELLING: Final[Mapping[str, str]] = {
    "aspectRatio": "generationConfig.imageConfig.aspectRatio",
    "resolution": "generationConfig.imageConfig.imageSize",
    "numberOfImages": "generationConfig.candidateCount",
    "google_search": "tools.googleSearch",
    "prompt": "contents",
    "image": "contents",
    "imageUrls": "contents",
    "callbackUrl": "batch.webhookConfig.uris",
    **{name: f"generationConfig.{name}" for name in ("seed", "temperature", "topP", "topK", "maxOutputTokens")},
}
"""Names in the native API → in a request."""


@dataclass(frozen=True, kw_only=True)
class BuiltOrder:
    order: OrderRequest
    ignored: tuple[str, ...]
    """Names in the request that have no effect."""


def build_order(
    request: GenerateContentRequest,
    model: str,
    *,
    catalog: Catalog,
    apis: Collection[str],
    is_sdk: bool,
) -> BuiltOrder:
    """Return the order of a request. Raises `ApiError` for what is not supported.

    model: as the path names it. apis: the catalogs of the providers in use.
    """
    found = find_named(catalog, model)
    most = most_references(catalog, found, apis)
    request.check_supported()
    conversation = read_conversation(
        request.contents,
        max_images=min(most, MAX_IMAGES.get(found.name, most)),
        is_sdk=is_sdk,
    )
    count = request.config.candidate_count
    order = OrderRequest(
        params=ImageParams(
            prompt=conversation.prompt,
            model=model,
            aspect_ratio=request.image_config.aspect_ratio,
            resolution=request.image_config.image_size,
            seed=request.config.seed,
            extra=_other_params(request),
        ),
        count=1 if count is None else count,
        sources=conversation.sources,
        turns=conversation.turns,
        origin={"dialect": "gemini", "model": model.removeprefix("models/")},
    )
    return BuiltOrder(order=order, ignored=(*request.ignored_names(), *conversation.left_out))


def _other_params(request: GenerateContentRequest) -> dict[str, Any]:
    config = request.config
    values = {
        "temperature": config.temperature,
        "topP": config.top_p,
        "topK": config.top_k,
        "maxOutputTokens": config.max_output_tokens,
        "systemInstruction": request.system_text,
        "google_search": True if request.has_grounding else None,
    }
    return {name: value for name, value in values.items() if value is not None}
