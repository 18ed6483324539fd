"""Query parameters: models that parse the query of a request and describe it in the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Self

from pydantic import ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema
from starlette.requests import Request

from broker.api.http.request_body import RequestModel
from broker.errors import ApiError

EMPTY: Final = {"type": "string", "maxLength": 0}
"""An empty value counts as absent."""
_NAME: Final = re.compile(r"[\x21-\x7e]{1,100}")
_FLAGS: Final = {"false": False, "0": False, "true": True, "1": True}


@dataclass(frozen=True)
class ParsedText:
    """Type annotation of a parameter: how its text is parsed, and the JSON Schema of the text."""

    parse: Callable[[str], Any]
    """Raises ValueError with the rule that the text breaks, like "must be true or false"."""
    schema: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return dict(self.schema)


class QueryModel(RequestModel):
    """Base of the query parameters of an endpoint. All are optional; an empty value counts as absent."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True)

    @classmethod
    def read(cls, request: Request) -> Self:
        """Parse the query of a request. Raises `ApiError` naming the first parameter that is wrong."""
        if not request.scope["query_string"]:
            return cls._without_parameters()
        names = [field.alias or name for name, field in cls.model_fields.items()]
        texts = {name: text for name in names if (text := request.query_params.get(name))}
        try:
            return cls.model_validate(texts)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            raise ApiError("invalid_request", f"{name} {first['ctx']['error']}.", field=name) from error

    @classmethod
    @cache
    def _without_parameters(cls) -> Self:
        return cls.model_validate({})


def one_of_text(choices: Iterable[str]) -> ParsedText:
    """Annotate a parameter that is one of `choices`."""
    allowed = tuple(choices)

    def parse_choice(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return ParsedText(parse_choice, {"enum": [*allowed, ""]})


def _parse_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("must be 1 to 100 visible ASCII characters")
    return text


def _parse_flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError("must be true or false")
    return _FLAGS[text.lower()]


NAME_TEXT: Final = ParsedText(_parse_name, {"anyOf": [{"type": "string", "pattern": "^[!-~]{1,100}$"}, EMPTY]})
FLAG_TEXT: Final = ParsedText(_parse_flag, {"enum": [*sorted(_FLAGS), ""]})
