"""kie.ai, and relays with the same API."""

from __future__ import annotations

from importlib import resources
from typing import Final

from broker.providers.base import ProviderPackage
from broker.providers.kie.adapter import Kie
from broker.providers.kie.checks import CHECKS
from broker.providers.kie.settings import KieSettings
from broker.providers.kie.signature import configure_signature

KIE: Final = ProviderPackage(
    name="kie",
    settings=KieSettings,
    is_configured=lambda settings: settings.is_configured and not settings.is_older_dialect,
    takes_own_keys=lambda settings: not settings.is_older_dialect,
    factory=Kie,
    signature=configure_signature,
    signature_advice="does NANO_BANANA_WEBHOOK_KEY equal the webhookHmacKey at kie.ai?",
    checks=CHECKS,
    catalog=resources.files(__package__).joinpath("catalog.toml"),
)
