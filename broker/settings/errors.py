"""Messages about wrong variables: the name, the shape of the value (never the value), and what to write instead."""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import SecretStr
from pydantic_settings import BaseSettings

_LIMITS: Final = {
    "greater_than": "greater than",
    "greater_than_equal": "not less than",
    "less_than": "less than",
    "less_than_equal": "not greater than",
}
_CURES: Final = {
    "secret_key": "at least 16 characters; delete the variable, and one is generated",
}
"""Cures that pydantic's error type does not imply, by field."""


def describe_error(kind: type[BaseSettings], error: Any) -> str:
    """Return the sentence for one of pydantic's errors about a settings class."""
    if not error["loc"]:  # about several variables together; the sentence names them
        return str(error["msg"]).removeprefix("Value error, ")
    location = str(error["loc"][0])
    cure = _CURES.get(field_of(kind, location)) or _cure(error)
    return f"{_variable(kind, location)} is wrong ({_shape(error.get('input'))}): {cure}"


def field_of(kind: type[BaseSettings], location: str) -> str:
    """Return the field behind a location of pydantic's, which may be the field or one of its variables."""
    fields = kind.model_fields.items()
    return next((name for name, field in fields if location == name or location in aliases_of(field)), location)


def aliases_of(field: Any) -> list[str]:
    """Return the variables of a field, the primary one first."""
    return [str(choice) for choice in field.validation_alias.choices]


def _variable(kind: type[BaseSettings], location: str) -> str:
    field = kind.model_fields.get(field_of(kind, location))
    return aliases_of(field)[0] if field else location


def _cure(error: Any) -> str:
    """Return what to write instead; pydantic's own words are about Python types."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind.startswith("int_"):
        return "use a whole number"
    if kind.startswith("float_"):
        return "use a number"
    if kind.startswith("bool_"):
        return "use true or false"
    if kind == "literal_error":
        return f"use {limits['expected']}"
    if kind in _LIMITS:
        return f"use a number {_LIMITS[kind]} {next(iter(limits.values()))}"
    return str(error["msg"]).removeprefix("Value error, ")


def _shape(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, str):
        kind = "a number" if re.fullmatch(r"-?[0-9.]+", value) else "text"
        return f"{kind} of {len(value)} characters"
    return type(value).__name__
