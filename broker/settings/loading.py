"""Reading all settings classes at once, so that one start reports every wrong variable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from broker.errors import SettingsError
from broker.settings.core import Settings
from broker.settings.errors import aliases_of, describe_error, field_of
from broker.settings.types import PackageSettings

_S = TypeVar("_S", bound=BaseSettings)
Kinds = Sequence[type[PackageSettings]]


@dataclass(frozen=True, kw_only=True)
class SalvagedSettings:
    """Settings with defaults in place of wrong values."""

    settings: Settings
    wrong: frozenset[str] = frozenset()
    """Fields whose values are wrong."""
    complaints: tuple[str, ...] = ()
    """A sentence for each, with its cure."""


def read_settings(
    packages: Kinds, *, env_file: Path | None, overrides: Mapping[str, Any], isolated: bool = False
) -> Settings:
    """Return the settings of this process. Raises `SettingsError` with a line for each wrong variable.

    env_file: read in addition to the environment, which is stronger. overrides: by field or variable name, strongest;
    a field name goes to the first class that has it, the core first. isolated: read nothing but the overrides.
    """
    by_class = _by_class((Settings, *packages), overrides)
    found = _read(packages, env_file, by_class, isolated=isolated)
    if found.complaints:
        raise SettingsError("\n".join(found.complaints))
    return found.settings


def salvage_settings(packages: Kinds, *, env_file: Path | None) -> SalvagedSettings:
    """Return settings with defaults in place of wrong values, for a report of everything that is wrong."""
    return _read(packages, env_file, {})


def variables_of(packages: Kinds) -> list[str]:
    """Return every variable, primary names before their aliases."""
    kinds: list[type[BaseSettings]] = [Settings, *packages]
    fields = (field for kind in kinds for field in kind.model_fields.values())
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
    *,
    isolated: bool = False,
) -> SalvagedSettings:
    complaints: dict[str, None] = {}
    wrong: set[str] = set()
    if not _is_text(env_file):
        complaints[f"{env_file} is not UTF-8 text: write it again, see .env.example"] = None
        env_file = None

    def read_class(kind: type[_S]) -> _S:
        values = dict(overrides.get(kind, {}))
        source = _isolate(kind) if isolated else kind
        defaulted: set[str] = set()
        while True:
            try:
                return source(_env_file=env_file, **values)
            except ValidationError as error:
                errors = error.errors(include_input=True)
            complaints.update(dict.fromkeys(describe_error(kind, e) for e in errors))
            bad = {field_of(kind, str(e["loc"][0])) if e["loc"] else "blob_url" for e in errors}
            if bad <= defaulted:  # no further default can help
                raise SettingsError("\n".join(complaints))
            defaulted |= bad
            wrong.update(bad)
            values |= {name: kind.model_fields[name].default for name in bad}

    settings = read_class(Settings).with_packages(*(read_class(kind) for kind in packages))
    return SalvagedSettings(settings=settings, wrong=frozenset(wrong), complaints=tuple(complaints))


class _OverridesOnly:
    """Mixin that makes a settings class read neither the environment nor a file."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _isolate(kind: type[_S]) -> type[_S]:
    return cast(type[_S], type(kind.__name__, (_OverridesOnly, kind), {"__module__": __name__}))


def _is_text(path: Path | None) -> bool:
    if path is None or not path.is_file():
        return True
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError:
        return False
    return True
