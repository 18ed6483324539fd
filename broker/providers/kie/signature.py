"""Signature of kie.ai's callbacks (kie.ai: Webhook Verification)."""

from __future__ import annotations

from broker.providers.kie.settings import KieSettings
from webhooks.signatures.base import Signature, Unsigned
from webhooks.signatures.job_id_hmac import JobIdHmac


def callback_signature(key: str) -> JobIdHmac:
    """Return the verifier for the webhook key of an account."""
    return JobIdHmac(key=key.encode(), signature_header="x-webhook-signature", timestamp_header="x-webhook-timestamp")


def configure_signature(settings: KieSettings) -> Signature:
    """Return the verifier; without a webhook key, callbacks are verified by their token alone."""
    return callback_signature(settings.webhook_key.get_secret_value()) if settings.webhook_key else Unsigned()
