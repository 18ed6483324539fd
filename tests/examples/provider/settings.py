"""The variables of the example provider."""

from __future__ import annotations

from pydantic import SecretStr

from broker.settings.types import ApiKey, HttpUrl, PackageSettings, env


class ExampleSettings(PackageSettings):
    """One account."""

    example_key: ApiKey = env("EXAMPLE_API_KEY")
    example_url: HttpUrl = env("EXAMPLE_API_URL", default="https://api.example.com")
    example_webhook_key: SecretStr | None = env("EXAMPLE_WEBHOOK_KEY")

    @property
    def is_configured(self) -> bool:
        return self.example_key is not None
