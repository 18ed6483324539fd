"""The API description, OpenAPI 3.1: the route table and the table of descriptions, put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from starlette.routing import BaseRoute, Route

from broker.api.descriptions import DESCRIPTIONS, Answer, Description, Parameter, Schema, Tag
from broker.api.schemas import Refused

ABOUT: Final = """\
An order for an image is durable as soon as it is answered with 202; then poll the task, or follow it.

Callers send `Authorization: Bearer <key>` with one of BROKER_API_KEYS. While none is set, direct calls from the
broker's own machine need no key.
"""
_SCHEME: Final = {"type": "http", "scheme": "bearer", "description": "one of BROKER_API_KEYS"}
_PLACE: Final = "#/components/schemas/{model}"


class _Plain(GenerateJsonSchema):
    """Without the noise: titles that repeat the name, defaults that only say that a key may be missing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: Any) -> Any:
        return self.generate_inner(schema["schema"])


def describe(routes: Iterable[BaseRoute], *, version: str) -> dict[str, Any]:
    """The document for these routes. KeyError for one that nobody described."""
    paths: dict[str, dict[str, Any]] = {}
    described = []
    for method, path in doors(routes):
        description = DESCRIPTIONS[f"{method} {path}"]
        described.append(description)
        paths.setdefault(path, {})[method.lower()] = _operation(description)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Nano Banana broker", "version": version, "description": ABOUT, "license": {"name": "MIT"}},
        "tags": [{"name": tag} for tag in get_args(Tag)],
        "paths": paths,
        "components": {"schemas": _schemas(described), "securitySchemes": {"key": _SCHEME}},
    }


def doors(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Every method of every path; HEAD comes with GET and is nothing of its own."""
    for route in routes:
        if isinstance(route, Route):
            yield from ((method, route.path) for method in sorted((route.methods or set()) - {"HEAD"}))


def _operation(description: Description) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": description.id,
        "summary": description.summary,
        "tags": [description.tag],
        "security": [{"key": []}] if description.trusted else [],
        "responses": dict(_responses(description)),
    }
    if description.text:
        operation["description"] = description.text
    if description.takes:
        operation["parameters"] = [_parameter(parameter) for parameter in description.takes]
    if description.body:
        operation["requestBody"] = {"required": True, "content": _content(description.body)}
    return operation


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "description": parameter.text,
        "schema": dict(parameter.schema),
    }


def _responses(description: Description) -> Iterator[tuple[str, Any]]:
    for status, answer in sorted(description.answers.items()):
        yield str(status), _answer(answer)
    for status in sorted({*description.refuses, *([401] if description.trusted else [])}):
        headers = {"WWW-Authenticate": (True, "Bearer")} if status == 401 and description.trusted else {}
        yield str(status), _refusal(HTTPStatus(status).phrase, headers)
    yield "5XX", _refusal("our own trouble; 503 and 507 pass", {})


def _refusal(text: str, headers: Mapping[str, tuple[bool, str]]) -> dict[str, Any]:
    return _answer(Answer(text=text, content={"application/json": Refused}, headers=headers))


def _answer(answer: Answer) -> dict[str, Any]:
    parts = {
        "content": _content(answer.content),
        "headers": {
            name: {"required": always, "description": text, "schema": {"type": "string"}}
            for name, (always, text) in answer.headers.items()
        },
        "links": {
            name: {"operationId": operation, "parameters": dict(parameters)}
            for name, (operation, parameters) in answer.links.items()
        },
    }
    return {"description": answer.text, **{name: part for name, part in parts.items() if part}}


def _content(by_type: Mapping[str, Schema]) -> dict[str, Any]:
    return {media_type: {"schema": _schema(schema)} for media_type, schema in by_type.items()}


def _schema(schema: Schema) -> dict[str, Any]:
    return {"$ref": _PLACE.format(model=schema.__name__)} if isinstance(schema, type) else dict(schema)


def _schemas(described: Iterable[Description]) -> dict[str, Any]:
    """Every document that one of them names, and those inside it."""
    contents = [one.body for one in described] + [a.content for one in described for a in one.answers.values()]
    models = {schema for content in contents for schema in content.values() if isinstance(schema, type)} | {Refused}
    ordered: list[type[BaseModel]] = sorted(models, key=lambda model: model.__name__)
    _, document = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=_PLACE, schema_generator=_Plain
    )
    found: dict[str, Any] = document["$defs"]
    return found
