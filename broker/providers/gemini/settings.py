"""The variables of Google's Gemini API, or of a relay of its shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, SecretStr

from broker.settings.types import ApiKeys, HttpUrl, PackageSettings, env, matching
from webhooks.signatures.standard import read_secret

_VERSION: Final = re.compile(r"/v1(beta)?$")
GOOGLE: Final = "https://generativelanguage.googleapis.com"


def _check_secret(secret: SecretStr | None) -> SecretStr | None:
    if secret is not None:
        try:
            read_secret(secret.get_secret_value())
        except ValueError as error:
            raise ValueError(f"{error}: use the secret that Google showed when the webhook was created") from None
    return secret


ModelSuffix = Annotated[
    str, matching(r"[A-Za-z0-9._:-]{1,32}", "use a suffix like -c, as the relay's model names have")
]


class GeminiSettings(PackageSettings):
    """One project at Google, or one account at a relay."""

    other_names: ClassVar[Mapping[str, str]] = {
        "(GOOGLE_)?(GOOGLE|GEMINI|GENAI|GENERATIVE_AI|AI_STUDIO|AI)(_API)?_(KEY|TOKEN)S?": "GEMINI_API_KEY",
        "NEXT_PUBLIC_(GOOGLE|GEMINI)_API_KEYS?": "GEMINI_API_KEY",
        "(GOOGLE_)?GEMINI(_API)?(_BASE)?_(URL|ENDPOINT)|GOOGLE_GENAI_BASE_URL": "GEMINI_BASE_URL",
    }

    gemini_keys: ApiKeys = env("GEMINI_API_KEY", "GOOGLE_API_KEY", default=())
    gemini_url: HttpUrl = env("GEMINI_BASE_URL", default=GOOGLE)
    gemini_auth: Literal["header", "query", "bearer"] = env("GEMINI_AUTH", default="header")
    gemini_model_suffix: ModelSuffix = env("GEMINI_MODEL_SUFFIX", default="")
    gemini_webhook_secret: Annotated[SecretStr | None, AfterValidator(_check_secret)] = env("GEMINI_WEBHOOK_SECRET")
    uses_batch: bool = env("BROKER_BATCH", default=False)

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.gemini_keys

    def place_key(self, key: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Return the headers and the query that carry a key."""
        match self.gemini_auth:
            case "header":
                return {"x-goog-api-key": key}, {}
            case "query":
                return {}, {"key": key}
            case "bearer":
                return {"Authorization": f"Bearer {key}"}, {}

    @property
    def base_url(self) -> str:
        """The address without the version of the API."""
        return _VERSION.sub("", self.gemini_url)
