"""The variables of the upstream API, which `NANO_BANANA_API_URL` makes kie.ai, a relay of it, or another service.

This class is the only owner of these variables; the package of the older dialect reads them from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final
from urllib.parse import urlsplit

from pydantic import PositiveInt, SecretStr

from broker.settings.types import ApiKeys, HttpUrl, PackageSettings, env

OWN_HOSTS: Final = (".kie.ai", ".erweima.ai")
_API_PATH: Final = re.compile(r"/api/v1(/jobs(/createTask)?|/playground/createTask)?$|(?<=/nano-banana)/generate$")
"""End of an address in a document that is not part of the base URL."""


class KieSettings(PackageSettings):
    """One account at the upstream API."""

    other_names: ClassVar[Mapping[str, str]] = {
        "(KIE|KIEAI|KIE_AI|NANO_BANANA|NANOBANANA_KIE)(_API)?_(KEY|TOKEN|SECRET)S?": "NANO_BANANA_API_KEY",
        "KIE(_AI)?(_API)?(_BASE)?_URL|NANO_BANANA(_API)?_BASE_URL": "NANO_BANANA_API_URL",
        "(KIE|NANO_BANANA)(_AI)?_WEBHOOK(_HMAC)?_(KEY|SECRET)|WEBHOOK_HMAC_KEY": "NANO_BANANA_WEBHOOK_KEY",
    }

    kie_keys: ApiKeys = env("NANO_BANANA_API_KEY", "KIE_API_KEY", default=())
    api_url: HttpUrl = env("NANO_BANANA_API_URL", default="https://api.kie.ai")
    upload_url: HttpUrl = env("NANO_BANANA_UPLOAD_URL", default="https://kieai.redpandaai.co")
    webhook_key: SecretStr | None = env("NANO_BANANA_WEBHOOK_KEY")
    upload_references: bool = env("BROKER_UPLOAD_REFERENCES", default=False)
    creates_per_10s: PositiveInt | None = env("NANO_BANANA_CREATES_PER_10S")

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.kie_keys

    @property
    def is_older_dialect(self) -> bool:
        """True for a service of the older dialect, which `…/nano-banana` addresses have.

        kie.ai's own hosts never speak it: `/nano-banana` there is a path of old documents.
        """
        return self.base_url.endswith("/nano-banana")

    @property
    def base_url(self) -> str:
        """Base URL of the service; except at kie.ai it may be below a path of its own."""
        parts = urlsplit(self.api_url)
        is_own = f".{parts.hostname}".endswith(OWN_HOSTS)
        return f"{parts.scheme}://{parts.netloc}" + ("" if is_own else _API_PATH.sub("", parts.path.rstrip("/")))
