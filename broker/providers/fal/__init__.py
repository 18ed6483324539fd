"""fal."""

from __future__ import annotations

from importlib import resources
from typing import Final

from broker.providers.base import ProviderPackage
from broker.providers.fal.adapter import Fal
from broker.providers.fal.checks import CHECKS
from broker.providers.fal.settings import FalSettings
from broker.providers.fal.signature import configure_signature

FAL: Final = ProviderPackage(
    name="fal",
    settings=FalSettings,
    factory=Fal,
    signature=configure_signature,
    signature_advice="do FAL_REST_BASE_URL and FAL_BASE_URL belong together? Callbacks are verified by the keys there",
    checks=CHECKS,
    key_check="fal key",
    catalog=resources.files(__package__).joinpath("catalog.toml"),
)
