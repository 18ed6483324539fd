"""Signature of WaveSpeed's callbacks, with one secret per key (WaveSpeed: Verifying Webhooks)."""

from __future__ import annotations

from collections.abc import Sequence

from broker.providers.base import ProviderContext
from broker.providers.signing_keys import CallbackSignature, FetchedKeys
from broker.providers.webhook_secrets import fetch_signature
from webhooks.signatures.base import Signature
from webhooks.signatures.hex_v3 import HexSignature, read_text_secret


def configure_signature(keys: Sequence[ProviderContext]) -> CallbackSignature:
    url = f"{keys[0].settings.base_url}/api/v3/webhook/secret"

    async def fetch() -> Signature:
        return await fetch_signature(keys, url, "data.secret", read_text_secret, HexSignature)

    return FetchedKeys(name=keys[0].name, is_signed=lambda headers: "webhook-signature" in headers, fetch=fetch)
