"""The variables of WaveSpeed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import SecretStr

from broker.settings.types import ApiKeys, HttpUrl, PackageSettings, env


class WaveSpeedSettings(PackageSettings):
    """The accounts at WaveSpeed."""

    other_names: ClassVar[Mapping[str, str]] = {
        "WAVE_?SPEED(_AI)?(_API)?_(KEY|TOKEN|SECRET)S?": "WAVESPEED_API_KEY",
        "WAVE_?SPEED(_AI)?(_API)?(_BASE)?_URL": "WAVESPEED_BASE_URL",
    }

    wavespeed_keys: ApiKeys = env("WAVESPEED_API_KEY", default=())
    wavespeed_url: HttpUrl = env("WAVESPEED_BASE_URL", default="https://api.wavespeed.ai")

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.wavespeed_keys

    @property
    def base_url(self) -> str:
        """Base URL without the version, which may be part of the variable."""
        return self.wavespeed_url.removesuffix("/api/v3")
