"""Google's Gemini API, and relays of its shape: the image is in the response, which takes a minute or more."""

from __future__ import annotations

from importlib import resources
from typing import Final

from broker.providers.base import ProviderPackage
from broker.providers.gemini.adapter import Gemini
from broker.providers.gemini.checks import CHECKS
from broker.providers.gemini.settings import GeminiSettings
from broker.providers.gemini.signature import configure_signature

GEMINI: Final = ProviderPackage(
    name="gemini",
    settings=GeminiSettings,
    factory=Gemini,
    signature=configure_signature,
    signature_advice="is GEMINI_WEBHOOK_SECRET the secret of the webhook that Google's API returned?",
    checks=CHECKS,
    catalog=resources.files(__package__).joinpath("catalog.toml"),
)
