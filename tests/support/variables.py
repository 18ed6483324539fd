"""The names of all environment variables that the settings read."""

from __future__ import annotations

from typing import Any

from pydantic_settings import BaseSettings

from broker.providers.registry import settings_classes
from broker.settings import Settings


def settings_variables() -> list[str]:
    """Return every variable, primary names before their aliases."""
    kinds: tuple[type[BaseSettings], ...] = (Settings, *settings_classes())
    aliases: list[Any] = [field.validation_alias for kind in kinds for field in kind.model_fields.values()]
    return [name for alias in aliases for name in alias.choices]
