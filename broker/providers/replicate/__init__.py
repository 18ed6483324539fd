"""Replicate."""

from __future__ import annotations

from importlib import resources
from typing import Final

from broker.providers.base import ProviderPackage
from broker.providers.replicate.adapter import Replicate
from broker.providers.replicate.checks import CHECKS
from broker.providers.replicate.settings import ReplicateSettings
from broker.providers.replicate.signature import configure_signature

REPLICATE: Final = ProviderPackage(
    name="replicate",
    settings=ReplicateSettings,
    factory=Replicate,
    signature=configure_signature,
    checks=CHECKS,
    catalog=resources.files(__package__).joinpath("catalog.toml"),
)
