"""The variables of nanobananaapi.ai."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic import SecretStr

from broker.settings.types import ApiKeys, HttpUrl, PackageSettings, env

_API_PATH: Final = re.compile(r"/api/v1(/nanobanana)?$")


class NanoBananaApiSettings(PackageSettings):
    """The accounts at nanobananaapi.ai."""

    other_names: ClassVar[Mapping[str, str]] = {
        "NANOBANANA(_?API)?(_AI)?(_API)?_(KEY|TOKEN|SECRET)S?": "NANOBANANAAPI_KEY",
        "NANOBANANA(_?API)?(_AI)?(_API)?(_BASE)?_URL": "NANOBANANAAPI_BASE_URL",
    }

    nanobananaapi_keys: ApiKeys = env("NANOBANANAAPI_KEY", default=())
    nanobananaapi_url: HttpUrl = env("NANOBANANAAPI_BASE_URL", default="https://api.nanobananaapi.ai")

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.nanobananaapi_keys

    @property
    def base_url(self) -> str:
        """Base URL without the path of the API, which may be part of the variable."""
        return _API_PATH.sub("", self.nanobananaapi_url)
