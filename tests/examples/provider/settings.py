"""The variables of the example provider."""

from __future__ import annotations

from pydantic import SecretStr

from broker.settings.types import ApiKeys, HttpUrl, PackageSettings, env


class ExampleSettings(PackageSettings):
    """One account."""

    example_keys: ApiKeys = env("EXAMPLE_API_KEY", default=())
    example_url: HttpUrl = env("EXAMPLE_API_URL", default="https://api.example.com")
    example_webhook_key: SecretStr | None = env("EXAMPLE_WEBHOOK_KEY")

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.example_keys
