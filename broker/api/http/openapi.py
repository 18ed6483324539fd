"""The OpenAPI 3.1 document of the declared endpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from broker.api.http.endpoint import Dialect, Endpoint, Parameter, Schema, SuccessResponse, json_success
from broker.api.http.query import QueryModel
from broker.errors import STATUS_OF

ABOUT: Final = """\
An order is durable as soon as it is answered with 202; then poll its task, or stream it.

Callers send `Authorization: Bearer <key>` with an API key, an access token or one of BROKER_API_KEYS, or the session
cookie of a login. While there are neither keys nor users, direct calls from the broker's own machine need none.
"""
_SCHEME: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "an API key, an access token, or one of BROKER_API_KEYS",
}
_REFERENCE: Final = "#/components/schemas/{model}"


class _PlainJsonSchema(GenerateJsonSchema):
    """Without titles that repeat the name, and defaults that only say that a key may be missing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: Any) -> Any:
        return self.generate_inner(schema["schema"])


def openapi_document(dialects: Sequence[Dialect], *, version: str) -> dict[str, Any]:
    """Return the document of all endpoints. Raises ValueError for an operation id that is used twice."""
    paths: dict[str, dict[str, Any]] = {}
    names: dict[str, None] = {}
    tags: dict[str, None] = {}
    for dialect in dialects:
        for endpoint in dialect.endpoints:
            if endpoint.operation_id in names:
                raise ValueError(f"operation id {endpoint.operation_id} is used twice")
            names[endpoint.operation_id] = None
            tags[endpoint.tag] = None
            paths.setdefault(_path_template(endpoint.path), {})[endpoint.method.lower()] = _operation(
                endpoint, dialect.error_model
            )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Nano Banana broker", "version": version, "description": ABOUT, "license": {"name": "MIT"}},
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {"schemas": _component_schemas(dialects), "securitySchemes": {"key": _SCHEME}},
    }


def _operation(endpoint: Endpoint, error_model: type[BaseModel]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.operation_id,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "security": [{"key": []}] if endpoint.needs_key else [],
        "responses": dict(_responses(endpoint, error_model)),
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    parameters = [_parameter(one) for one in (*endpoint.parameters, *_query_parameters(endpoint.query))]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.request:
        operation["requestBody"] = {"required": True, "content": _content(endpoint.request)}
    return operation


def _path_template(path: str) -> str:
    """Return a path without the converters of its parameters."""
    return re.sub(r":[a-z]+\}", "}", path)


def _query_parameters(query: type[QueryModel] | None) -> Iterator[Parameter]:
    properties = query.model_json_schema(schema_generator=_PlainJsonSchema)["properties"] if query else {}
    for name, schema in properties.items():
        yield Parameter(name, "query", schema.pop("description", ""), schema)


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "description": parameter.text,
        "schema": dict(parameter.schema),
    }


def _responses(endpoint: Endpoint, error_model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for status, response in sorted(endpoint.responses.items()):
        yield str(status), _response(response)
    codes = endpoint.error_codes
    for status in sorted({STATUS_OF[code] for code in codes}):
        named = ", ".join(f"`{code}`" for code in sorted(codes) if STATUS_OF[code] == status)
        headers = {"WWW-Authenticate": (True, "Bearer")} if status == 401 and endpoint.needs_key else {}
        yield (
            str(status),
            _response(json_success(f"{HTTPStatus(status).phrase}: {named}", error_model, headers=headers)),
        )
    if endpoint.is_held:
        failed = json_success(
            "Failed Dependency: the provider could not make the image; the code says why", error_model
        )
        yield "424", _response(failed)
    yield "5XX", _response(json_success("a fault of the broker; 503 and 507 may be retried", error_model))


def _response(response: SuccessResponse) -> dict[str, Any]:
    parts = {
        "content": _content(response.content),
        "headers": {
            name: {"required": always, "description": text, "schema": {"type": "string"}}
            for name, (always, text) in response.headers.items()
        },
        "links": {
            name: {"operationId": operation, "parameters": dict(parameters)}
            for name, (operation, parameters) in response.links.items()
        },
    }
    return {"description": response.text, **{name: part for name, part in parts.items() if part}}


def _content(by_type: Mapping[str, Schema]) -> dict[str, Any]:
    return {media_type: {"schema": _schema(schema)} for media_type, schema in by_type.items()}


def _schema(schema: Schema) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(model=schema.__name__)} if isinstance(schema, type) else dict(schema)


def _component_schemas(dialects: Iterable[Dialect]) -> dict[str, Any]:
    """Return the schemas of all models that an endpoint names, and of those inside them."""
    models: set[type[BaseModel]] = set()
    for dialect in dialects:
        models.add(dialect.error_model)
        for endpoint in dialect.endpoints:
            contents = [endpoint.request, *(response.content for response in endpoint.responses.values())]
            models.update(one for content in contents for one in content.values() if isinstance(one, type))
    components: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=_REFERENCE, schema_generator=_PlainJsonSchema)
        components |= {**schema.pop("$defs", {}), model.__name__: schema}
    return dict(sorted(components.items()))
