"""The secrets with which providers sign callbacks, where the API publishes one per account."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from broker.errors import ProviderError
from broker.providers import parsing
from broker.providers.base import ProviderContext
from webhooks.signatures.base import Proof, Signature

REFUSED = frozenset({401, 403})


@dataclass(frozen=True)
class PartialSignature:
    """Verifier without the secrets of all accounts: what does not match may be signed with a missing one."""

    signature: Signature
    required: bool = False

    def verify(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        proof = self.signature.verify(headers, body, ids, now)
        return Proof.NONE if proof == Proof.WRONG else proof


async def fetch_signature(
    keys: Sequence[ProviderContext],
    url: str,
    place: str,
    read: Callable[[str], bytes],
    build: Callable[[Sequence[bytes]], Signature],
) -> Signature:
    """Return the verifier with the secret of each account, but of those whose API key the provider refuses.

    place: of the secret in the response, dotted. read: decodes it. build: makes the verifier of all. Raises
    `ProviderError` if a secret cannot be fetched for another reason.
    """
    found = []
    for context in keys:
        secret = context.api_key.get_secret_value() if context.api_key else ""
        response = await context.client.request("GET", url, headers={"Authorization": f"Bearer {secret}"})
        if response.status in REFUSED:
            continue
        text = parsing.first(parsing.text, parsing.values_at((response.json(),), place))
        try:
            found.append(read(text or ""))
        except ValueError as error:
            summary = f"{context.name}: the secret of its webhooks, HTTP {response.status}: {error}"
            raise ProviderError(summary, summary=summary) from None
    return build(found) if len(found) == len(keys) else PartialSignature(build(found))
