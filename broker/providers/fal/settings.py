"""The variables of fal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic import SecretStr

from broker.settings.types import ApiKeys, HttpUrl, PackageSettings, env

_API_PATH: Final = re.compile(r"(/v\d+)?(/\.well-known(/jwks\.json)?|/storage(/upload(/initiate)?)?)?$")
"""End of an address in a document that is not part of the base URL."""


class FalSettings(PackageSettings):
    """The accounts at fal."""

    other_names: ClassVar[Mapping[str, str]] = {
        "FAL_KEY_(ID|SECRET)": "FAL_KEY=id:secret",
        "FAL(_AI)?(_API)?_(KEY|TOKEN|SECRET)S?": "FAL_KEY",
    }

    fal_keys: ApiKeys = env("FAL_KEY", default=())
    fal_url: HttpUrl = env("FAL_BASE_URL", default="https://queue.fal.run")
    fal_rest_url: HttpUrl = env("FAL_REST_BASE_URL", default="https://rest.fal.ai")

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.fal_keys

    @property
    def base_url(self) -> str:
        """Base URL of the queue."""
        return _API_PATH.sub("", self.fal_url)

    @property
    def rest_url(self) -> str:
        """Base URL of uploads and of the keys that sign callbacks."""
        return _API_PATH.sub("", self.fal_rest_url)
