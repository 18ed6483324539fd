"""Reading all settings classes at once, so that one start reports every wrong variable.

A message has the variable's name, the shape of the value (never the value), and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings

from broker.settings.core import Settings
from broker.settings.other_names import explain_other_files, explain_unread, set_variables
from broker.settings.types import PackageSettings

_S = TypeVar("_S", bound=BaseSettings)

_CURES: Final = {
    "int_parsing": "use a whole number",
    "float_parsing": "use a number",
    "bool_parsing": "use true or false",
    "literal_error": "use {expected}",
    "greater_than": "use a number greater than {gt}",
    "greater_than_equal": "use a number not less than {ge}",
    "less_than_equal": "use a number not greater than {le}",
}
"""Cures in place of pydantic's messages, which are about Python types."""


@dataclass(frozen=True, kw_only=True)
class SalvagedSettings:
    """Settings with defaults in place of wrong values."""

    settings: Settings
    wrong: frozenset[str] = frozenset()
    """Fields whose values are wrong."""
    errors: tuple[str, ...] = ()
    """A sentence for each, with its cure."""


def read_settings(
    packages: Sequence[type[PackageSettings]],
    *,
    env_file: Path | None,
    overrides: Mapping[str, Any],
    isolated: bool = False,
) -> SalvagedSettings:
    """Read the broker's own settings and those of the packages.

    env_file: read in addition to the environment, which is stronger. overrides: by field or variable name, strongest;
    a field name is for every class that has it. isolated: read nothing but the overrides.
    """
    kinds: list[type[BaseSettings]] = [Settings, *packages]
    if unknown := overrides.keys() - {name for kind in kinds for name in (*kind.model_fields, *_variables(kind))}:
        raise TypeError(f"no setting is named {', '.join(sorted(unknown))}")
    errors: dict[str, None] = {}
    wrong: set[str] = set()

    def read_class(kind: type[_S]) -> _S:
        """Read one class; put the defaults in place of wrong values until no more are found."""
        defaults = {name: field.default for name, field in kind.model_fields.items()} if isolated else {}
        values = defaults | dict(overrides)  # they precede the environment
        file = None if isolated else env_file
        while True:
            try:
                return kind(_env_file=file, **values)
            except UnicodeDecodeError:
                errors[f"{file} is not UTF-8 text: write it again, see .env.example"] = None
                file = None
            except ValidationError as error:
                for found in error.errors(include_input=True):
                    field = _field_of(kind, found)
                    errors[_describe_error(kind, field, found)] = None
                    wrong.add(field)
                    values |= dict.fromkeys((field, *_aliases(kind, field)), kind.model_fields[field].default)

    settings = read_class(Settings).with_packages(*(read_class(kind) for kind in packages))
    if not isolated:
        read = {name for kind in kinds for name in _variables(kind)}
        names = set_variables(env_file)
        unread = explain_unread(names, (Settings, *packages), read)
        files = explain_other_files(env_file, names, (Settings, *packages), read)
        settings = settings.with_unread((*unread, *settings.explain_unused(names), *files))
    return SalvagedSettings(settings=settings, wrong=frozenset(wrong), errors=tuple(errors))


def _variables(kind: type[BaseSettings]) -> Iterator[str]:
    for field in kind.model_fields:
        yield from _aliases(kind, field)


def _aliases(kind: type[BaseSettings], field: str) -> list[str]:
    """Return the variables of a field, the primary one first."""
    choices: Any = kind.model_fields[field].validation_alias
    return list(choices.choices)


def _field_of(kind: type[BaseSettings], error: Any) -> str:
    """Return the field that one of pydantic's errors is about; its location may be a variable."""
    if not error["loc"]:  # about the bucket's variables together
        return "blob_url"
    location = str(error["loc"][0])
    return next(name for name in kind.model_fields if location == name or location in _aliases(kind, name))


def _describe_error(kind: type[BaseSettings], field: str, error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message  # it names the variables
    cure = _CURES.get(error["type"], message).format(**error.get("ctx", {}))
    return f"{_aliases(kind, field)[0]} is wrong ({_shape(error['input'])}): {cure}"


def _shape(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, str):
        kind = "a number" if re.fullmatch(r"-?[0-9.]+", value) else "text"
        return f"{kind} of {len(value)} characters"
    return type(value).__name__
