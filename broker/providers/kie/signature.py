"""Signature of kie.ai's callbacks: it covers the job id and the time, not the body."""

from __future__ import annotations

from collections.abc import Sequence

from broker.providers.base import ProviderContext
from broker.providers.kie.settings import KieSettings
from broker.providers.signing_keys import CallbackSignature, FixedKeys
from webhooks.signatures.base import Unsigned
from webhooks.signatures.job_id_hmac import JobIdHmac


def configure_signature(keys: Sequence[ProviderContext]) -> CallbackSignature:
    """Return the verifier (kie.ai: Webhook Verification); without a webhook key, callbacks have their token alone."""
    settings: KieSettings = keys[0].settings
    if settings.webhook_key is None:
        return FixedKeys(Unsigned())
    key = settings.webhook_key.get_secret_value().encode()
    return FixedKeys(JobIdHmac(key=key, signature_header="x-webhook-signature", timestamp_header="x-webhook-timestamp"))
