"""From a request to an order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker.api.dialects.gemini.contents import ResolveFile, read_conversation
from broker.api.dialects.gemini.requests import GenerateContentRequest
from broker.catalog import Catalog
from broker.errors import ApiError
from broker.orders import ImageParams, OrderRequest

MAX_IMAGES: Final[Mapping[str, int]] = {"nano-banana": 3}
"""Input images of one turn, where Google takes fewer than the catalog has from other providers."""

SPELLING: Final[Mapping[str, str]] = {
    "aspectRatio": "generationConfig.imageConfig.aspectRatio",
    "resolution": "generationConfig.imageConfig.imageSize",
    **{name: f"generationConfig.{name}" for name in ("seed", "temperature", "topP", "topK", "maxOutputTokens")},
}
"""Parameters of an order → their names in a request."""


@dataclass(frozen=True, kw_only=True)
class BuiltOrder:
    order: OrderRequest
    ignored: tuple[str, ...]
    """Names in the request that have no effect."""


async def build_order(
    request: GenerateContentRequest, model: str, *, catalog: Catalog, resolve_file: ResolveFile, is_sdk: bool
) -> BuiltOrder:
    """Return the order of a request. model: as the path names it. Raises `ApiError` for what is not supported."""
    found = _find_model(catalog, model)
    request.check_supported()
    conversation = await read_conversation(
        request.contents,
        max_images=MAX_IMAGES.get(found, catalog.resolve(found).max_references),
        resolve_file=resolve_file,
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


def _find_model(catalog: Catalog, name: str) -> str:
    """Return the canonical name. Raises `ApiError("not_found")`, as Google does."""
    try:
        return catalog.resolve(name).name
    except ApiError as error:
        raise ApiError("not_found", error.message, field="model") from error


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
