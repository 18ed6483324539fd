"""The model catalog over HTTP: parameters, providers, prices and dates of each model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import Endpoint, json_success
from broker.api.http.responses import json_response
from broker.catalog import MODES, Catalog, Model, Offer, Status
from broker.clock import Clock, day
from broker.orders import OutputFormat
from broker.presenter import ModeName, ResponseModel

Day = Annotated[str, Field(json_schema_extra={"format": "date"}, examples=["2026-10-02"])]


class ModelAlias(ResponseModel):
    name: str
    until: Annotated[Day | None, Field(description="withdrawn by its vendor on that day")]


class ProviderOffer(ResponseModel):
    name: Annotated[str, Field(description="the provider")]
    modes: list[ModeName]
    prices: Annotated[dict[str, float], Field(description="of one image, by resolution; empty: unknown")]
    unit: str | None


class ModelData(ResponseModel):
    name: str
    title: str
    default: bool
    available: Annotated[bool, Field(description="the provider in use serves it")]
    status: Status
    deprecated_on: Day | None
    shutdown_on: Day | None
    instead: Annotated[str | None, Field(description="the model to move to")]
    aliases: list[ModelAlias]
    modes: list[ModeName]
    aspect_ratios: list[str]
    resolutions: list[str]
    output_formats: list[OutputFormat]
    max_references: int
    max_reference_bytes: int
    prompt_limit: Annotated[int, Field(description="characters")]
    providers: list[ProviderOffer]


class ModelList(ResponseModel):
    success: Literal[True]
    data: list[ModelData]
    default: str
    provider: Annotated[str, Field(description="the one in use")]


@dataclass(frozen=True, kw_only=True)
class ModelRoutes:
    clock: Clock
    catalog: Catalog
    provider_name: str
    supports: Callable[[str], bool]
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
            provider=self.provider_name,
        )
        return json_response(models.to_document())

    def _model(self, model: Model, today: date) -> ModelData:
        offers = self.catalog.offers(model)
        return ModelData(
            name=model.name,
            title=model.title,
            default=model is self.catalog.default,
            available=self.supports(model.name),
            status=model.status(today),
            deprecated_on=_iso_day(model.deprecated_on),
            shutdown_on=_iso_day(model.shutdown_on),
            instead=model.instead,
            aliases=[
                ModelAlias(name=model.google, until=_iso_day(model.shutdown_on)),
                *(ModelAlias(name=alias.name, until=_iso_day(alias.until)) for alias in model.aliases),
            ],
            modes=[mode for mode in MODES if any(mode in offer.modes for offer in offers)],
            aspect_ratios=list(model.aspect_ratios),
            resolutions=list(model.resolutions),
            output_formats=list(model.output_formats),
            max_references=model.max_references,
            max_reference_bytes=min(model.max_reference_bytes, self.max_file_size_bytes),
            prompt_limit=model.prompt_limit,
            providers=[_offer(offer) for offer in offers],
        )


def _offer(offer: Offer) -> ProviderOffer:
    return ProviderOffer(name=offer.provider, modes=list(offer.modes), prices=dict(offer.prices), unit=offer.unit)


def _iso_day(moment: date | None) -> str | None:
    return moment.isoformat() if moment else None
