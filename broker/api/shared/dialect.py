"""Routes that two dialects have in common: one response with the parts of both, errors in the shape of the client's.

A dialect takes part by `Dialect.documents`: a function under the name of the document, which returns its part. An error
has the shape of the first dialect that recognizes its client (`Dialect.is_client`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from broker.api.http.auth import Authenticator, KeyPlaces
from broker.api.http.endpoint import Dialect, Endpoint, Parameter, json_success
from broker.api.http.responses import json_response
from broker.catalog import Catalog, Model
from broker.errors import ApiError
from broker.services import Services

ALL_PLACES: Final = KeyPlaces(schemes=("token", "key"), headers=("x-goog-api-key",), query=("key",))
MODELS: Final = "models"
"""Document: served models → their list."""
MODEL: Final = "model"
"""Document: one model and the name by which it was asked for → the model."""

_OBJECT: Final = {"type": "object"}


def shared_dialect(services: Services, dialects: Sequence[Dialect]) -> Dialect:
    """Return the dialect of the shared routes, to be mounted after the others."""
    routes = SharedRoutes(models=services.served_models, catalog=services.catalog, dialects=tuple(dialects))
    native = dialects[0]
    return Dialect(
        name="shared",
        authenticate=Authenticator(services.settings, services.tokens.secret, ALL_PLACES).authenticate,
        render_error=routes.render_error,
        error_model=native.error_model,
        endpoints=routes.endpoints(),
    )


@dataclass(frozen=True, kw_only=True)
class SharedRoutes:
    models: Sequence[Model]
    """Those that a provider in use serves."""
    catalog: Catalog
    dialects: tuple[Dialect, ...]

    def endpoints(self) -> list[Endpoint]:
        found = []
        if self._has(MODELS):
            found.append(
                Endpoint(
                    "GET",
                    "/v1/models",
                    self.list_served_models,
                    access="caller",
                    tag="models",
                    responses={200: json_success("the models that a provider in use serves", _OBJECT)},
                )
            )
        if self._has(MODEL):
            found.append(
                Endpoint(
                    "GET",
                    "/v1/models/{name:path}",
                    self.get_served_model,
                    access="caller",
                    tag="models",
                    parameters=(Parameter("name", "path", "a name or alias of the model"),),
                    responses={200: json_success("the model", _OBJECT)},
                    errors=("not_found",),
                )
            )
        return found

    async def list_served_models(self, _: Request) -> Response:
        """List models, in the shapes of all dialects that have this route."""
        return json_response(self._merge(MODELS, self.models))

    async def get_served_model(self, request: Request) -> Response:
        """Get a model, in the shapes of all dialects that have this route."""
        name = request.path_params["name"]
        model = find_served(self.models, self.catalog, name)
        return json_response(self._merge(MODEL, model, name))

    def render_error(self, request: HTTPConnection, error: ApiError, headers: Mapping[str, str]) -> Response:
        native, *others = self.dialects
        fallback = next((dialect for dialect in others if dialect.documents), native)
        return next((one for one in others if one.is_client(request)), fallback).render_error(request, error, headers)

    def _has(self, document: str) -> bool:
        return any(document in dialect.documents for dialect in self.dialects)

    def _merge(self, document: str, *arguments: Any) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for dialect in self.dialects:
            if make := dialect.documents.get(document):
                merged |= make(*arguments)
        return merged


def find_served(served: Sequence[Model], catalog: Catalog, name: str) -> Model:
    """Return a served model by any of its names. Raises `ApiError("not_found")`."""
    try:
        found = catalog.resolve(name)
    except ApiError as error:
        raise ApiError("not_found", error.message, field="model") from error
    if found not in served:
        raise ApiError("not_found", f"No provider in use serves {found.name}.", field="model")
    return found
