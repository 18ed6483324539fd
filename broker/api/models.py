"""The model catalog over HTTP: parameters, providers, prices and dates of each model."""

from __future__ import annotations

from collections.abc import Callable, Collection
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
from broker.orders import OutputFormat
from broker.presenter import ModeName, ResponseModel


def _day_text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value


Day = Annotated[str, BeforeValidator(_day_text), Field(json_schema_extra={"format": "date"}, examples=["2026-10-02"])]


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
            provider=self.provider_name,
        )
        return json_response(models.to_document())

    def _model(self, model: Model, today: date) -> ModelData:
        offers = self.catalog.offers(model)
        return ModelData.from_object(
            model,
            default=model is self.catalog.default,
            available=self.supports(model.name),
            status=model.status(today),
            aliases=[
                ModelAlias.from_object(model, name=model.google, until=model.shutdown_on),
                *(ModelAlias.from_object(alias) for alias in model.aliases),
            ],
            modes=[mode for mode in MODES if any(mode in offer.modes for offer in offers)],
            max_references=self.catalog.max_references(model, self.apis),
            max_reference_bytes=min(model.max_reference_bytes, self.max_file_size_bytes),
            providers=[ProviderOffer.from_object(offer, name=offer.provider) for offer in offers],
        )
