"""The variables of Replicate."""

from __future__ import annotations

from pydantic import SecretStr

from broker.settings.types import ApiKeys, HttpUrl, PackageSettings, env


class ReplicateSettings(PackageSettings):
    """The accounts at Replicate."""

    replicate_tokens: ApiKeys = env("REPLICATE_API_TOKEN", default=())
    replicate_url: HttpUrl = env("REPLICATE_BASE_URL", default="https://api.replicate.com")

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.replicate_tokens

    @property
    def base_url(self) -> str:
        """Base URL without the version, which may be part of the variable."""
        return self.replicate_url.removesuffix("/v1")
