"""Signature of the older dialect's callbacks: not documented anywhere; relays of kie.ai's API use its scheme."""

from __future__ import annotations

from broker.providers.legacy.settings import LegacySettings
from webhooks.signatures.base import Signature, Unsigned
from webhooks.signatures.job_id_hmac import JobIdHmac


def configure_signature(settings: LegacySettings) -> Signature:
    """Return the verifier; without a webhook key, callbacks are verified by their token alone."""
    if settings.webhook_key is None:
        return Unsigned()
    key = settings.webhook_key.get_secret_value().encode()
    return JobIdHmac(key=key, signature_header="x-webhook-signature", timestamp_header="x-webhook-timestamp")
