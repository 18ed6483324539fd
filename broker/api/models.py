"""The model catalog over HTTP: parameters, providers, prices and dates of each model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import Endpoint, json_success
from broker.api.http.responses import json_response
from broker.catalog import MODES, Catalog, Model, Status
from broker.clock import Clock, day
from broker.ordering.offers import Offer, combine_limits, list_offers, most_references
from broker.orders import USD_DIGITS, OutputFormat
from broker.presenter import ImageSize, ModeName, ResponseModel


def _day_text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value


Day = Annotated[str, BeforeValidator(_day_text), Field(json_schema_extra={"format": "date"}, examples=["2026-10-02"])]


class ModelAlias(ResponseModel):
    name: str
    until: Annotated[Day | None, Field(description="withdrawn by its vendor on that day")]


class LimitsData(ResponseModel):
    """Accepted values; a parameter that cannot be chosen has none."""

    aspect_ratios: list[str]
    resolutions: list[str]
    output_formats: list[OutputFormat]
    max_references: Annotated[int, Field(description="reference images; 0: none of the modes takes any")]
    prompt_limit: Annotated[int, Field(description="characters")]


class ProviderOffer(LimitsData):
    name: Annotated[str, Field(description="the provider")]
    in_use: Annotated[bool, Field(description="the broker has a key for it")]
    modes: list[ModeName]
    prices: Annotated[dict[str, float], Field(description="of one image, by resolution; empty: unknown")]
    unit: Annotated[str | None, Field(description="of the prices")]
    usd_prices: Annotated[dict[str, float], Field(description="the same in USD; empty: unknown")]
    metered: Annotated[bool, Field(description="it charges by tokens or seconds: the prices are of a usual image")]
    priced_on: Annotated[Day | None, Field(description="when the prices were read")]


class ModelData(LimitsData):
    """A model with its limits at the providers in use together, or its own if none of them serves it."""

    name: str
    title: str
    default: bool
    available: Annotated[bool, Field(description="a provider in use serves it")]
    status: Status
    deprecated_on: Day | None
    shutdown_on: Day | None
    instead: Annotated[str | None, Field(description="the model to move to")]
    aliases: list[ModelAlias]
    modes: list[ModeName]
    max_reference_bytes: int
    pixel_sizes: Annotated[
        dict[str, dict[str, ImageSize]],
        Field(description="by ratio and resolution; a ratio that leaves the size to the model is missing"),
    ]
    output_tokens: Annotated[dict[str, int], Field(description="of one image, by resolution; empty: unknown")]
    providers: list[ProviderOffer]


class ModelList(ResponseModel):
    success: Literal[True]
    data: list[ModelData]
    default: str
    provider: Annotated[str, Field(description="the preferred one in use")]
    providers: Annotated[list[str], Field(description="those in use, the preferred one first")]


@dataclass(frozen=True, kw_only=True)
class ModelRoutes:
    clock: Clock
    catalog: Catalog
    provider_names: Sequence[str]
    """Those in use, the preferred one first."""
    supports: Callable[[str], bool]
    apis: Collection[str]
    """Names of the catalogs of the providers in use."""
    max_file_size_bytes: int

    def endpoints(self) -> list[Endpoint]:
        catalog = json_success("the catalog as of today", ModelList)
        return [
            Endpoint("GET", "/api/models", self.list_models, access="caller", tag="models", responses={200: catalog})
        ]

    async def list_models(self, _: Request) -> Response:
        """List models with their parameters and prices."""
        catalog, today = self.catalog, day(self.clock.now())
        models = ModelList(
            success=True,
            data=[self._model(model, today) for model in catalog.models],
            default=catalog.default.name,
            provider=self.provider_names[0],
            providers=list(self.provider_names),
        )
        return json_response(models.to_document())

    def _model(self, model: Model, today: date) -> ModelData:
        offers = list_offers(self.catalog, model)
        used = [offer for offer in offers if offer.provider in self.apis]
        limits = combine_limits(model, used)
        sizes = {ratio: model.image_sizes.get(ratio, {}) for ratio in limits.aspect_ratios}
        return ModelData.from_object(
            model,
            **vars(limits),
            default=model is self.catalog.default,
            available=self.supports(model.name),
            status=model.status(today),
            aliases=[
                ModelAlias.from_object(model, name=model.google, until=model.shutdown_on),
                *(ModelAlias.from_object(alias) for alias in model.aliases),
            ],
            modes=[mode for mode in MODES if any(mode in offer.modes for offer in used or offers)],
            max_references=most_references(self.catalog, model, self.apis),
            max_reference_bytes=min(model.max_reference_bytes, self.max_file_size_bytes),
            pixel_sizes={
                ratio: {
                    resolution: ImageSize.from_object(size)
                    for resolution, size in by_resolution.items()
                    if resolution in limits.resolutions
                }
                for ratio, by_resolution in sizes.items()
                if by_resolution
            },
            output_tokens={name: count for name, count in model.output_tokens.items() if name in limits.resolutions},
            providers=[self._offer(offer) for offer in offers],
        )

    def _offer(self, offer: Offer) -> ProviderOffer:
        return ProviderOffer.from_object(
            offer,
            **vars(offer.limits),
            name=offer.provider,
            in_use=offer.provider in self.apis,
            metered=offer.is_metered,
            prices=dict(offer.prices),
            usd_prices={resolution: round(price, USD_DIGITS) for resolution, price in offer.usd_prices},
        )
