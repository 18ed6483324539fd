"""The variables of Replicate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import SecretStr

from broker.settings.types import ApiKeys, HttpUrl, PackageSettings, env


class ReplicateSettings(PackageSettings):
    """The accounts at Replicate."""

    other_names: ClassVar[Mapping[str, str]] = {
        "REPLICATE(_API)?_(KEY|TOKEN|SECRET)S?": "REPLICATE_API_TOKEN",
        "REPLICATE(_API)?(_BASE)?_URL": "REPLICATE_BASE_URL",
    }

    replicate_tokens: ApiKeys = env("REPLICATE_API_TOKEN", default=())
    replicate_url: HttpUrl = env("REPLICATE_BASE_URL", default="https://api.replicate.com")

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.replicate_tokens

    @property
    def base_url(self) -> str:
        """Base URL without the version, which may be part of the variable."""
        return self.replicate_url.removesuffix("/v1")
