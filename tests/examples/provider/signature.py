"""Signature of the example's callbacks: Standard Webhooks, which covers the body."""

from __future__ import annotations

from collections.abc import Sequence

from broker.providers.base import ProviderContext
from broker.providers.signing_keys import CallbackSignature, FixedKeys
from tests.examples.provider.settings import ExampleSettings
from webhooks.signatures.base import Unsigned
from webhooks.signatures.standard import StandardSignature, read_secret


def configure_signature(keys: Sequence[ProviderContext]) -> CallbackSignature:
    """Return the verifier; without a webhook key, callbacks are verified by their token alone."""
    settings: ExampleSettings = keys[0].settings
    if settings.example_webhook_key is None:
        return FixedKeys(Unsigned())
    return FixedKeys(StandardSignature([read_secret(settings.example_webhook_key.get_secret_value())]))
