"""OpenRouter: one API for the models of many vendors; the image is in the response."""

from __future__ import annotations

from importlib import resources
from typing import Final

from broker.providers.base import ProviderPackage
from broker.providers.openrouter.adapter import OpenRouter
from broker.providers.openrouter.checks import CHECKS
from broker.providers.openrouter.settings import OpenRouterSettings

OPENROUTER: Final = ProviderPackage(
    name="openrouter",
    settings=OpenRouterSettings,
    factory=OpenRouter,
    checks=CHECKS,
    catalog=resources.files(__package__).joinpath("catalog.toml"),
)
