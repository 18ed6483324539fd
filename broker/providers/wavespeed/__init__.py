"""WaveSpeed."""

from __future__ import annotations

from importlib import resources
from typing import Final

from broker.providers.base import ProviderPackage
from broker.providers.wavespeed.adapter import WaveSpeed
from broker.providers.wavespeed.checks import CHECKS
from broker.providers.wavespeed.settings import WaveSpeedSettings
from broker.providers.wavespeed.signature import configure_signature

WAVESPEED: Final = ProviderPackage(
    name="wavespeed",
    settings=WaveSpeedSettings,
    factory=WaveSpeed,
    signature=configure_signature,
    checks=CHECKS,
    catalog=resources.files(__package__).joinpath("catalog.toml"),
)
