"""Routes that two dialects have in common: one response with the parts of both, errors in the shape of the client's.

A dialect takes part by `Dialect.documents`: a function under the name of the document, which returns its part. An error
has the shape of the first dialect that recognizes its client (`Dialect.is_client`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Union

from pydantic import BaseModel, ConfigDict, RootModel, create_model
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from broker.api.http.auth import Authenticator, KeyPlaces
from broker.api.http.endpoint import Dialect, Endpoint, Parameter, SuccessResponse, json_success
from broker.api.http.responses import json_response
from broker.api.shared.files import DELETED_FILE, FILE, FILES, FilesQuery, SharedFiles
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
    routes = SharedRoutes(
        models=services.served_models,
        catalog=services.catalog,
        files=SharedFiles.from_services(services),
        dialects=tuple(dialects),
    )
    return Dialect(
        name="shared",
        authenticate=Authenticator.from_services(services, ALL_PLACES).authenticate,
        render_error=routes.render_error,
        error_model=_any_error_model(dialects),
        endpoints=routes.endpoints(),
    )


class _AnyError(RootModel[Any]):
    """Base of an error whose shape is known later; built when the documentation is first asked for."""

    model_config = ConfigDict(defer_build=True)


def _any_error_model(dialects: Sequence[Dialect]) -> type[BaseModel]:
    """Return the model of an error in the shape of any of the dialects."""
    models: Any = tuple(dict.fromkeys(dialect.error_model for dialect in dialects))
    return create_model("SharedError", __base__=_AnyError, root=(Union[models], ...))  # noqa: UP007


@dataclass(frozen=True, kw_only=True)
class SharedRoutes:
    models: Sequence[Model]
    """Those that a provider in use serves."""
    catalog: Catalog
    files: SharedFiles
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
        if self._has(FILES):
            found += self._file_endpoints()
        return found

    def _file_endpoints(self) -> list[Endpoint]:
        endpoint = partial(Endpoint, access="caller", tag="files")
        one = partial(
            endpoint, path="/v1/files/{id}", parameters=(Parameter("id", "path", "of a file"),), errors=("not_found",)
        )
        return [
            endpoint(
                "GET",
                "/v1/files",
                self.list_files,
                query=FilesQuery,
                responses={200: json_success("the files of the caller, newest first", _OBJECT)},
            ),
            one("GET", handler=self.get_file, responses={200: json_success("the file", _OBJECT)}),
            one(
                "DELETE",
                handler=self.delete_file,
                responses={200: json_success("deleted", _OBJECT), 204: SuccessResponse(text="deleted")},
            ),
        ]

    async def list_served_models(self, request: Request) -> Response:
        """List models, in the shapes of all dialects that have this route."""
        return json_response(self._merge(request, MODELS, self.models))

    async def get_served_model(self, request: Request) -> Response:
        """Get a model, in the shapes of all dialects that have this route."""
        name = request.path_params["name"]
        model = find_served(self.models, self.catalog, name)
        return json_response(self._merge(request, MODEL, model, name))

    async def list_files(self, request: Request) -> Response:
        """List uploaded files, in the shapes of all dialects that have this route."""
        return json_response(self._merge(request, FILES, await self.files.read_page(request)))

    async def get_file(self, request: Request) -> Response:
        """Get an uploaded file, in the shapes of all dialects that have this route."""
        return json_response(self._merge(request, FILE, await self.files.read_file(request)))

    async def delete_file(self, request: Request) -> Response:
        """Delete an uploaded file.

        Orders that used it keep their copy.
        """
        await self.files.delete_file(request)
        client = self._client_dialect(request)
        if client is not None and FILE in client.documents and DELETED_FILE not in client.documents:
            return Response(status_code=204)
        return json_response(self._merge(request, DELETED_FILE))

    def render_error(self, request: HTTPConnection, error: ApiError, headers: Mapping[str, str]) -> Response:
        native, *others = self.dialects
        fallback = next((dialect for dialect in others if dialect.documents), native)
        return (self._client_dialect(request) or fallback).render_error(request, error, headers)

    def _client_dialect(self, request: HTTPConnection) -> Dialect | None:
        """Return the dialect that recognizes the client of a request."""
        return next((one for one in self.dialects[1:] if one.is_client(request)), None)

    def _has(self, document: str) -> bool:
        return any(document in dialect.documents for dialect in self.dialects)

    def _merge(self, request: Request, document: str, *arguments: Any) -> dict[str, Any]:
        """Return the parts of all dialects; of fields that several have, that of the client's."""
        merged: dict[str, Any] = {}
        client = self._client_dialect(request)
        for dialect in sorted(self.dialects, key=lambda one: one is client):
            if make := dialect.documents.get(document):
                merged |= make(*arguments)
        return merged


def find_named(catalog: Catalog, name: str) -> Model:
    """Return the model that a path names by any of its names. Raises `ApiError("not_found")`."""
    if not name.removeprefix("models/").strip():
        raise ApiError("not_found", "The address names no model: add one of GET /v1/models.", field="model")
    try:
        return catalog.resolve(name)
    except ApiError as error:
        raise ApiError("not_found", error.message, field="model") from error


def find_served(served: Sequence[Model], catalog: Catalog, name: str) -> Model:
    """Return a served model by any of its names. Raises `ApiError("not_found")`."""
    found = find_named(catalog, name)
    if found not in served:
        raise ApiError("not_found", f"No provider in use serves {found.name}.", field="model")
    return found
