"""Standard Webhooks, version 1 (standardwebhooks.com).

The signed content is `id.timestamp.body`. The signature header lists one signature per key, so that a new key can be
deployed on one side before the old one is removed from the other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from webhooks.signatures.base import Proof, is_fresh

KEY_PREFIX: Final = "whsec_"
KEY_BYTES: Final = range(24, 65)
"""Key lengths that the standard allows."""
MAX_SIGNATURES: Final = 5
"""Signatures of one header that are verified."""
_HEADERS: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")
_ID: Final = re.compile(r"[\x21-\x7e]{1,255}")


def read_secret(text: str) -> bytes:
    """Return the key in `whsec_<base64>`. Raises ValueError with a message that does not contain the secret."""
    if not text.startswith(KEY_PREFIX):
        raise ValueError(f"it does not begin with {KEY_PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(KEY_PREFIX).encode("ascii"), validate=True)
    except ValueError:
        raise ValueError(f"what follows {KEY_PREFIX} is not base64") from None
    if len(key) not in KEY_BYTES:
        raise ValueError(f"its key has {len(key)} bytes, not {KEY_BYTES[0]} to {KEY_BYTES[-1]}")
    return key


def write_secret(key: bytes) -> str:
    """Return a key in the form that receivers' libraries accept."""
    return KEY_PREFIX + base64.b64encode(key).decode()


def derived_key(secret: bytes, owner: str | None = None) -> bytes:
    """Return the signing key derived from `secret`, used where none is configured; the same in every process.

    owner: of the webhooks that it signs; None for the operator. No key tells anything of another.
    """
    purpose = "standard-webhooks.v1" if owner is None else f"standard-webhooks.v1:{owner}"
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()


@dataclass(frozen=True)
class StandardSignature:
    """Signer with all keys, and verifier that accepts any one of them."""

    version: ClassVar[str] = "v1"
    keys: Sequence[bytes] = field(repr=False)
    required: bool = True

    def sign(self, message_id: str, at: float, body: bytes) -> dict[str, str]:
        """Return the headers for a message. at: time of sending, in seconds since the epoch."""
        timestamp = str(int(at))
        signature = " ".join(self._signature(key, message_id, timestamp, body).decode() for key in self.keys)
        return dict(zip(_HEADERS, (message_id, timestamp, signature), strict=True))

    def verify(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        """Return what the headers prove. ids: unused, because the body itself is covered."""
        message_id, timestamp, offered = (headers.get(name) for name in _HEADERS)
        if message_id is None and timestamp is None and offered is None:
            return Proof.NONE
        if message_id is None or timestamp is None or offered is None:
            return Proof.WRONG
        if not _ID.fullmatch(message_id) or not is_fresh(timestamp, now):
            return Proof.WRONG
        # no early exit: the duration reveals nothing
        expected = [self._signature(key, message_id, timestamp, body) for key in self.keys]
        matches = [hmac.compare_digest(one, other) for one in _split_header(offered) for other in expected]
        return Proof.BODY_VERIFIED if any(matches) else Proof.WRONG

    def encode_digest(self, digest: bytes) -> str:
        """Return a digest as the header spells it."""
        return base64.b64encode(digest).decode()

    def _signature(self, key: bytes, message_id: str, timestamp: str, body: bytes) -> bytes:
        digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
        return f"{self.version},{self.encode_digest(digest)}".encode()


def _split_header(header: str) -> list[bytes]:
    """Return the first few signatures of a header.

    They are compared as text: base64 of 32 bytes has four spellings, of which the signer sends one.
    """
    return [one.encode("utf-8", "replace") for one in header.split(" ", MAX_SIGNATURES)[:MAX_SIGNATURES]]
