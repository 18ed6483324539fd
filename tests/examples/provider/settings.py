"""The variables of the example provider."""

from __future__ import annotations

from pydantic import Field, SecretStr

from broker.settings.types import ApiKey, HttpUrl, PackageSettings, env_names


class ExampleSettings(PackageSettings):
    """One account."""

    example_key: ApiKey = Field(None, validation_alias=env_names("EXAMPLE_API_KEY"))
    example_url: HttpUrl = Field("https://api.example.com", validation_alias=env_names("EXAMPLE_API_URL"))
    example_webhook_key: SecretStr | None = Field(None, validation_alias=env_names("EXAMPLE_WEBHOOK_KEY"))

    @property
    def is_configured(self) -> bool:
        return self.example_key is not None
