"""Signature of the example's callbacks: Standard Webhooks, which covers the body."""

from __future__ import annotations

from tests.examples.provider.settings import ExampleSettings
from webhooks.signatures.base import Signature, Unsigned
from webhooks.signatures.standard import StandardSignature, read_secret


def configure_signature(settings: ExampleSettings) -> Signature:
    """Return the verifier; without a webhook key, callbacks are verified by their token alone."""
    if settings.example_webhook_key is None:
        return Unsigned()
    return StandardSignature([read_secret(settings.example_webhook_key.get_secret_value())])
