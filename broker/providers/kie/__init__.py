"""kie.ai, and relays with the same API."""

from __future__ import annotations

from importlib import resources
from typing import Final

from broker.providers.base import ProviderPackage
from broker.providers.kie.adapter import Kie
from broker.providers.kie.checks import CHECKS
from broker.providers.kie.settings import KieSettings
from webhooks.signatures.base import Signature, Unsigned
from webhooks.signatures.job_id_hmac import JobIdHmac


def configure_signature(settings: KieSettings) -> Signature:
    """Return the verifier (kie.ai: Webhook Verification); without a webhook key, callbacks have their token alone."""
    if settings.webhook_key is None:
        return Unsigned()
    key = settings.webhook_key.get_secret_value().encode()
    return JobIdHmac(key=key, signature_header="x-webhook-signature", timestamp_header="x-webhook-timestamp")


KIE: Final = ProviderPackage(
    name="kie",
    settings=KieSettings,
    is_configured=lambda settings: settings.is_configured and not settings.is_older_dialect,
    factory=Kie,
    signature=configure_signature,
    signature_advice="does NANO_BANANA_WEBHOOK_KEY equal the webhookHmacKey at kie.ai?",
    checks=CHECKS,
    catalog=resources.files(__package__).joinpath("catalog.toml"),
)
