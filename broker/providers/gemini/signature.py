"""Signatures of Google's webhooks (Google: Webhooks).

A webhook of the project, which the operator created, is signed with the secret that Google showed then. One that an
order named is signed with Google's own keys. Both use the headers of Standard Webhooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from broker.errors import ProviderError
from broker.providers.base import ProviderContext
from broker.providers.gemini.settings import GeminiSettings
from broker.providers.signing_keys import CallbackSignature, FetchedKeys, FixedKeys
from webhooks.signatures.base import Proof, Signature, Unsigned
from webhooks.signatures.rs256_jwt import Rs256Jwt, is_jwt, read_keys
from webhooks.signatures.standard import StandardSignature, read_secret

KEYS_PATH: Final = "/.well-known/jwks.json"


def configure_signature(keys: Sequence[ProviderContext]) -> CallbackSignature:
    """Return the verifier of both kinds."""
    context = keys[0]
    settings: GeminiSettings = context.settings
    secret = settings.gemini_webhook_secret

    async def fetch() -> Signature:
        response = await context.client.request("GET", settings.base_url + KEYS_PATH)
        if response.status != 200:
            raise ProviderError(f"the keys of webhooks: HTTP {response.status}")
        try:
            return Rs256Jwt(keys=read_keys(response.json()))
        except ValueError as error:
            raise ProviderError(f"the keys of webhooks: {error}") from None

    return GoogleSignature(
        own=FixedKeys(StandardSignature([read_secret(secret.get_secret_value())]) if secret else Unsigned()),
        fetched=FetchedKeys(name=context.name, is_signed=is_jwt, fetch=fetch),
    )


@dataclass(frozen=True, kw_only=True)
class GoogleSignature:
    """Verifier that chooses the kind by the form of the signature."""

    own: FixedKeys
    fetched: FetchedKeys

    @property
    def required(self) -> bool:
        """Batches of this broker name their webhook with a token; one without proof only causes a check."""
        return False

    async def verify(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        kind: CallbackSignature = self.fetched if is_jwt(headers) else self.own
        return await kind.verify(headers, body, ids, now)
