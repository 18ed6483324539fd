"""Reading all settings classes at once, so that one start reports every wrong variable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from broker.errors import SettingsError
from broker.settings.core import Settings
from broker.settings.errors import aliases_of, describe_error, field_of
from broker.settings.types import PackageSettings

Kinds = Sequence[type[PackageSettings]]


@dataclass(frozen=True, kw_only=True)
class SalvagedSettings:
    """Settings with defaults in place of wrong values."""

    settings: Settings
    wrong: frozenset[str] = frozenset()
    """Fields whose values are wrong."""
    complaints: tuple[str, ...] = ()
    """A sentence for each, with its cure."""


def read_settings(packages: Kinds, *, env_file: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Return the settings of this process. Raises `SettingsError` with a line for each wrong variable.

    env_file: read in addition to the environment, which is stronger. overrides: by field or variable name, strongest;
    a field name goes to the first class that has it, the core first.
    """
    found = _read(packages, env_file, _by_class((Settings, *packages), overrides))
    if found.complaints:
        raise SettingsError("\n".join(found.complaints))
    return found.settings


def salvage_settings(packages: Kinds, *, env_file: Path | None) -> SalvagedSettings:
    """Return settings with defaults in place of wrong values, for a report of everything that is wrong."""
    return _read(packages, env_file, {})


def variables_of(packages: Kinds) -> list[str]:
    """Return every variable, primary names before their aliases."""
    fields = (field for kind in (Settings, *packages) for field in kind.model_fields.values())
    return [alias for field in fields for alias in aliases_of(field)]


def _by_class(
    kinds: Iterable[type[BaseSettings]], overrides: Mapping[str, Any]
) -> dict[type[BaseSettings], dict[str, Any]]:
    found: dict[type[BaseSettings], dict[str, Any]] = {kind: {} for kind in kinds}
    for name, value in overrides.items():
        owner = next((kind for kind in found if field_of(kind, name) in kind.model_fields), None)
        if owner is None:
            raise TypeError(f"no setting is named {name}")
        found[owner][field_of(owner, name)] = value
    return found


def _read(
    packages: Kinds,
    env_file: Path | None,
    overrides: Mapping[type[BaseSettings], Mapping[str, Any]],
) -> SalvagedSettings:
    complaints: dict[str, None] = {}
    wrong: set[str] = set()
    found: list[BaseSettings] = []
    if not _is_text(env_file):
        complaints[f"{env_file} is not UTF-8 text: write it again, see .env.example"] = None
        env_file = None
    for kind in (Settings, *packages):
        values = dict(overrides.get(kind, {}))
        while True:
            try:
                found.append(kind(_env_file=env_file, **values))  # type: ignore[call-arg]  # pydantic-settings' own
                break
            except ValidationError as error:
                errors = error.errors(include_input=True)
                complaints |= dict.fromkeys(describe_error(kind, e) for e in errors)
                bad = {field_of(kind, str(e["loc"][0])) if e["loc"] else "blob_url" for e in errors}
                if bad <= values.keys() & wrong:  # the default itself is wrong
                    raise SettingsError("\n".join(complaints)) from None
                wrong |= bad
                values |= {name: kind.model_fields[name].default for name in bad}
    core, *others = found
    assert isinstance(core, Settings)
    settings = core.with_packages(*(package for package in others if isinstance(package, PackageSettings)))
    return SalvagedSettings(settings=settings, wrong=frozenset(wrong), complaints=tuple(complaints))


def _is_text(path: Path | None) -> bool:
    if path is None or not path.is_file():
        return True
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError:
        return False
    return True
