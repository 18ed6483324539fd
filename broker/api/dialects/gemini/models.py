"""Models as Google lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import Endpoint, Parameter, json_success
from broker.api.http.responses import json_response
from broker.api.shared.dialect import find_served
from broker.catalog import Catalog, Model
from broker.presenter import ResponseModel

METHODS: Final = ("generateContent", "streamGenerateContent", "batchGenerateContent")


class GeminiModelInfo(ResponseModel):
    name: str
    base_model_id: str
    version: str
    display_name: str
    description: str
    input_token_limit: int
    output_token_limit: int
    supported_generation_methods: list[str]


class GeminiModelList(ResponseModel):
    models: list[GeminiModelInfo]


@dataclass(frozen=True, kw_only=True)
class GeminiModelRoutes:
    models: Sequence[Model]
    """Those that a provider in use serves."""
    catalog: Catalog

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of `/v1beta`; those of `/v1` are shared with other dialects."""
        return [
            Endpoint(
                "GET",
                "/v1beta/models",
                self.list_gemini_models,
                access="caller",
                tag="Gemini",
                responses={200: json_success("the models that a provider in use serves", GeminiModelList)},
            ),
            Endpoint(
                "GET",
                "/v1beta/models/{model:path}",
                self.get_gemini_model,
                access="caller",
                tag="Gemini",
                parameters=(Parameter("model", "path", "a name or alias of the model"),),
                responses={200: json_success("the model", GeminiModelInfo)},
                errors=("not_found",),
            ),
        ]

    async def list_gemini_models(self, _: Request) -> Response:
        """List models in the shape of the Gemini API."""
        return json_response(describe_models(self.models))

    async def get_gemini_model(self, request: Request) -> Response:
        """Get a model in the shape of the Gemini API."""
        name = request.path_params["model"]
        return json_response(describe_model(find_served(self.models, self.catalog, name), name))


def describe_models(models: Sequence[Model]) -> dict[str, Any]:
    """Return the list of models, each under Google's id."""
    return GeminiModelList(models=[_model(model, model.google) for model in models]).to_document()


def describe_model(model: Model, name: str) -> dict[str, Any]:
    """Return a model under the name by which it was asked for."""
    return _model(model, name).to_document()


def _model(model: Model, name: str) -> GeminiModelInfo:
    return GeminiModelInfo(
        name=f"models/{name.removeprefix('models/')}",
        base_model_id=model.google,
        version="001",
        display_name=model.title,
        description=f"Images up to {model.resolutions[-1]}, from text and reference images.",
        input_token_limit=model.prompt_limit,
        output_token_limit=max(model.output_tokens.values(), default=0),
        supported_generation_methods=[*METHODS],
    )
