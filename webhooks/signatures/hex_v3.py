"""WaveSpeed's variant of Standard Webhooks: `v3,<hex>`, and a secret that is text instead of base64.

Source: wavespeed.ai/docs, Verifying Webhooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from webhooks.signatures.standard import KEY_PREFIX, StandardSignature


def read_text_secret(text: str) -> bytes:
    """Return the key in `whsec_<text>`. Raises ValueError with a message that does not contain the secret."""
    if not text.startswith(KEY_PREFIX) or text == KEY_PREFIX:
        raise ValueError(f"it is not {KEY_PREFIX} and a secret")
    return text.removeprefix(KEY_PREFIX).encode()


@dataclass(frozen=True)
class HexSignature(StandardSignature):
    """Signer and verifier; headers and signed content are those of Standard Webhooks."""

    version: ClassVar[str] = "v3"

    def encode_digest(self, digest: bytes) -> str:
        return digest.hex()
