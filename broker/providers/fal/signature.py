"""Signature of fal's callbacks: Ed25519, with keys that fal publishes (fal: Webhooks, Signature Verification)."""

from __future__ import annotations

from collections.abc import Sequence

from broker.errors import ProviderError
from broker.providers.base import ProviderContext
from broker.providers.signing_keys import CallbackSignature, FetchedKeys
from webhooks.signatures.base import Signature
from webhooks.signatures.ed25519_lines import SIGNATURE_HEADER, Ed25519Lines, read_keys


def configure_signature(keys: Sequence[ProviderContext]) -> CallbackSignature:
    """Return the verifier; the signing keys are the same for every account."""
    context = keys[0]
    url = f"{context.settings.rest_url}/.well-known/jwks.json"

    async def fetch() -> Signature:
        response = await context.client.request("GET", url)
        try:
            return Ed25519Lines(read_keys(response.json()))
        except ValueError as error:
            summary = f"{context.name}: the keys of its callbacks, HTTP {response.status}: {error}"
            raise ProviderError(summary, summary=summary) from None

    return FetchedKeys(name=context.name, is_signed=lambda headers: SIGNATURE_HEADER in headers, fetch=fetch)
