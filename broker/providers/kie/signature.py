"""Signature of kie.ai's callbacks: it covers the job id and the time, not the body."""

from __future__ import annotations

from broker.providers.kie.settings import KieSettings
from webhooks.signatures.base import Signature, Unsigned
from webhooks.signatures.job_id_hmac import JobIdHmac


def configure_signature(settings: KieSettings) -> Signature:
    """Return the verifier (kie.ai: Webhook Verification); without a webhook key, callbacks have their token alone."""
    if settings.webhook_key is None:
        return Unsigned()
    key = settings.webhook_key.get_secret_value().encode()
    return JobIdHmac(key=key, signature_header="x-webhook-signature", timestamp_header="x-webhook-timestamp")
