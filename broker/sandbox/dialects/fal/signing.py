"""The keys that sign callbacks. The signature is Ed25519 over request id, user id, timestamp and digest of the body."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

USER_ID = "user_sandbox"


@dataclass(frozen=True)
class SigningKeys:
    """A row of keys, the same for the same secret: number 0 is the first, the next ones follow by rotation."""

    secret: str | None = field(repr=False)

    def sign(self, number: int, request_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return the headers that sign a callback with one of the keys."""
        lines = [request_id, USER_ID, str(timestamp), hashlib.sha256(body).hexdigest()]
        return {
            "X-Fal-Webhook-Request-Id": request_id,
            "X-Fal-Webhook-User-Id": USER_ID,
            "X-Fal-Webhook-Timestamp": str(timestamp),
            "X-Fal-Webhook-Signature": self._key(number).sign("\n".join(lines).encode()).hex(),
        }

    def publish(self, count: int) -> dict[str, Any]:
        """Return the JWK set of the first keys, the newest first."""
        return {"keys": [self._jwk(number) for number in reversed(range(count))]}

    def _jwk(self, number: int) -> dict[str, str]:
        x = base64.urlsafe_b64encode(self._key(number).public_key().public_bytes_raw()).decode().rstrip("=")
        return {"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": f"sandbox-{number}", "x": x}

    def _key(self, number: int) -> Ed25519PrivateKey:
        seed = hashlib.sha256(f"{self.secret or 'of the sandbox'}/{number}".encode()).digest()
        return Ed25519PrivateKey.from_private_bytes(seed)
