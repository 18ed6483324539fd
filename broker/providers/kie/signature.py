"""Signature of kie.ai's callbacks (kie.ai: Webhook Verification)."""

from __future__ import annotations

from webhooks.signatures.job_id_hmac import JobIdHmac


def callback_signature(key: str) -> JobIdHmac:
    """Return the verifier for the webhook key of an account."""
    return JobIdHmac(key=key.encode(), signature_header="x-webhook-signature", timestamp_header="x-webhook-timestamp")
