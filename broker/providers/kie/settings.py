"""The variables of the upstream API, which `NANO_BANANA_API_URL` makes kie.ai, a relay of it, or another service.

This class is the only owner of these variables; the package of the older dialect reads them from it.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from broker.settings.types import ApiKey, HttpUrl, PackageSettings, env_names

OWN_HOSTS: Final = (".kie.ai", ".erweima.ai")
OLDER_DIALECT_PATH: Final = "/nano-banana"
_API_PATHS: Final = ("/api/v1/jobs/createTask", "/api/v1/playground/createTask", "/api/v1/jobs", "/api/v1")


class KieSettings(PackageSettings):
    """One account at the upstream API."""

    api_key: ApiKey = Field(None, validation_alias=env_names("NANO_BANANA_API_KEY", "KIE_API_KEY"))
    api_url: HttpUrl = Field("https://api.kie.ai", validation_alias=env_names("NANO_BANANA_API_URL"))
    upload_url: HttpUrl = Field("https://kieai.redpandaai.co", validation_alias=env_names("NANO_BANANA_UPLOAD_URL"))
    webhook_key: SecretStr | None = Field(None, validation_alias=env_names("NANO_BANANA_WEBHOOK_KEY"))
    upload_references: bool = Field(False, validation_alias=env_names("BROKER_UPLOAD_REFERENCES"))
    creates_per_10s: int | None = Field(None, gt=0, validation_alias=env_names("NANO_BANANA_CREATES_PER_10S"))

    @property
    def is_configured(self) -> bool:
        return self.api_key is not None

    @property
    def older_dialect_url(self) -> str | None:
        """Base URL of a service of the older dialect, or None for kie.ai and its relays.

        kie.ai's own hosts never speak it: `/nano-banana` there is a path of old documents.
        """
        parts = urlsplit(self.api_url.strip())
        base = parts.path.rstrip("/").removesuffix("/generate")
        if f".{parts.hostname}".endswith(OWN_HOSTS) or not base.endswith(OLDER_DIALECT_PATH):
            return None
        return f"{parts.scheme}://{parts.netloc}{base}"

    @property
    def base_url(self) -> str:
        """Base URL of kie.ai or its relay, which may be below a path of its own."""
        parts = urlsplit(self.api_url.strip())
        origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
        if f".{parts.hostname}".endswith(OWN_HOSTS):
            return origin
        suffix = next((known for known in _API_PATHS if path.endswith(known)), "")
        return origin + path.removesuffix(suffix).rstrip("/")
