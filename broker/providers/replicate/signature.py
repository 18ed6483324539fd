"""Signature of Replicate's callbacks: Standard Webhooks, with one secret per account (Replicate: Verify webhooks)."""

from __future__ import annotations

from collections.abc import Sequence

from broker.providers.base import ProviderContext
from broker.providers.signing_keys import CallbackSignature, FetchedKeys
from broker.providers.webhook_secrets import fetch_signature
from webhooks.signatures.base import Signature
from webhooks.signatures.standard import StandardSignature, read_secret


def configure_signature(keys: Sequence[ProviderContext]) -> CallbackSignature:
    url = f"{keys[0].settings.base_url}/v1/webhooks/default/secret"

    async def fetch() -> Signature:
        return await fetch_signature(keys, url, "key", read_secret, StandardSignature)

    return FetchedKeys(name=keys[0].name, is_signed=lambda headers: "webhook-signature" in headers, fetch=fetch)
