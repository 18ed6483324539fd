"""nanobananaapi.ai. It does not sign its callbacks: the token in their URL proves them."""

from __future__ import annotations

from importlib import resources
from typing import Final

from broker.providers.base import ProviderPackage
from broker.providers.nanobananaapi.adapter import NanoBananaApi
from broker.providers.nanobananaapi.checks import CHECKS
from broker.providers.nanobananaapi.settings import NanoBananaApiSettings

NANOBANANAAPI: Final = ProviderPackage(
    name="nanobananaapi",
    settings=NanoBananaApiSettings,
    factory=NanoBananaApi,
    checks=CHECKS,
    catalog=resources.files(__package__).joinpath("catalog.toml"),
)
