"""The variables of OpenRouter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic import SecretStr

from broker.settings.types import ApiKeys, HttpUrl, PackageSettings, env

_VERSION: Final = re.compile(r"/api/v1$")


class OpenRouterSettings(PackageSettings):
    """One account."""

    other_names: ClassVar[Mapping[str, str]] = {
        "OPEN_?ROUTER(_AI)?(_API)?_(KEY|TOKEN|SECRET)S?": "OPENROUTER_API_KEY",
        "OPEN_?ROUTER(_API)?(_BASE)?_URL": "OPENROUTER_BASE_URL",
    }

    openrouter_keys: ApiKeys = env("OPENROUTER_API_KEY", default=())
    openrouter_url: HttpUrl = env("OPENROUTER_BASE_URL", default="https://openrouter.ai/api/v1")

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.openrouter_keys

    @property
    def base_url(self) -> str:
        """The address without the version of the API."""
        return _VERSION.sub("", self.openrouter_url)
