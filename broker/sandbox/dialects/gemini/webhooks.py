"""Webhooks about batches (ai.google.dev: Webhooks), signed in one of two ways.

With a secret, like a webhook of the project: Standard Webhooks. Without one, like a webhook that the order named: a
JSON Web Token, RS256, whose key is in `/.well-known/jwks.json`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.sandbox.callbacks import CallbackDelivery
from broker.sandbox.dialects.gemini.faults import GeminiFault
from broker.sandbox.faults import FailureKind
from broker.sandbox.jobs import JobView

KEY_ID = "sandbox-1"
TOKEN_SECONDS = 300


@cache
def _signing_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def key_set() -> dict[str, Any]:
    """Return the JWK set with the public key."""
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(_signing_key(KEY_ID).public_key()))
    return {"keys": [{**public, "kid": KEY_ID, "alg": "RS256", "use": "sig"}]}


class GeminiWebhooks:
    """Bodies and signatures. secret: `whsec_` and base64; None for tokens."""

    def __init__(self, *, secret: str | None) -> None:
        self._secret = secret

    def build_body(self, view: JobView) -> Any:
        """Return a body without the result, as Google's have none."""
        kind = "batch.succeeded"
        if view.failure:
            kind = "batch.cancelled" if view.failure.kind is FailureKind.CANCELED else "batch.failed"
        elif GeminiFault.EXPIRED in view.job.faults:
            kind = "batch.expired"
        at = datetime.fromtimestamp(view.ended_at or 0, UTC)
        data = {"id": f"batches/{view.job.id}"}
        return {"type": kind, "version": "v1", "timestamp": at.isoformat(), "data": data}

    def sign(self, delivery: CallbackDelivery) -> Mapping[str, str]:
        sign = self._sign_with_token if self._secret is None else self._sign_with_secret
        return {
            "webhook-id": delivery.id,
            "webhook-timestamp": str(delivery.timestamp),
            "webhook-signature": sign(delivery),
        }

    def _sign_with_token(self, delivery: CallbackDelivery) -> str:
        claims = {
            "iss": "https://generativelanguage.googleapis.com",
            "aud": delivery.job.order.callback_url,
            "iat": delivery.timestamp,
            "exp": delivery.timestamp + TOKEN_SECONDS,
        }
        name = "a key that is not published" if delivery.is_wrong else KEY_ID
        return jwt.encode(claims, _signing_key(name), algorithm="RS256", headers={"kid": KEY_ID})

    def _sign_with_secret(self, delivery: CallbackDelivery) -> str:
        key = base64.b64decode((self._secret or "").removeprefix("whsec_")) + (b"wrong" if delivery.is_wrong else b"")
        signed = f"{delivery.id}.{delivery.timestamp}.".encode() + delivery.body
        return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
