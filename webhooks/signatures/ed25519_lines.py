"""Ed25519 over four lines: request id, user id, timestamp, and the SHA-256 of the body in lower-case hex (fal).

The sender publishes its keys as a JWK set (RFC 8037). They are the same for all its customers, so a signature proves
the sender and the body, and not for whom the message was made.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from webhooks.signatures.base import Proof, is_fresh

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_HEADER: Final = "x-fal-webhook-signature"
_LINES: Final = ("x-fal-webhook-request-id", "x-fal-webhook-user-id", "x-fal-webhook-timestamp")
"""Headers of the first three lines, in order."""
_LINE: Final = re.compile(r"[\x21-\x7e]{1,255}")
_HEX_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")
"""One spelling only, so that a changed signature is never an equal one."""
MAX_KEYS: Final = 16


def read_keys(document: Any) -> list[Ed25519PublicKey]:
    """Return the Ed25519 keys of a JWK set; others are left out. Raises ValueError if there is none."""
    listed = document.get("keys") if isinstance(document, dict) else None
    found = [_read_key(item) for item in listed[:MAX_KEYS]] if isinstance(listed, list) else []
    keys = [key for key in found if key is not None]
    if not keys:
        raise ValueError("it is not a JWK set with an Ed25519 key")
    return keys


def derived_key(secret: bytes) -> Ed25519PrivateKey:
    """Return our own signing key, derived from `secret`; the same in every process."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(hmac.new(secret, b"ed25519-lines.v1", hashlib.sha256).digest())


def write_keys(keys: Sequence[Ed25519PublicKey]) -> dict[str, Any]:
    """Return the JWK set of keys."""
    encoded = [base64.urlsafe_b64encode(key.public_bytes_raw()).rstrip(b"=").decode() for key in keys]
    return {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x} for x in encoded]}


def sign(key: Ed25519PrivateKey, request_id: str, user_id: str, at: float, body: bytes) -> dict[str, str]:
    """Return the headers for a message. at: time of sending, in seconds since the epoch."""
    headers = dict(zip(_LINES, (request_id, user_id, str(int(at))), strict=True))
    return headers | {SIGNATURE_HEADER: key.sign(_message(list(headers.values()), body)).hex()}


@dataclass(frozen=True)
class Ed25519Lines:
    """Verifier that accepts a signature by any one of the keys."""

    keys: Sequence[Ed25519PublicKey] = field(repr=False)
    required: bool = False

    def verify(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        """Return what the headers prove. ids: unused, because the body itself is covered."""
        offered = headers.get(SIGNATURE_HEADER)
        if offered is None:
            return Proof.NONE
        lines = [headers.get(name, "") for name in _LINES]
        if not all(map(_LINE.fullmatch, lines)) or not is_fresh(lines[-1], now):
            return Proof.WRONG
        if not _HEX_SIGNATURE.fullmatch(offered):
            return Proof.WRONG
        message, signature = _message(lines, body), bytes.fromhex(offered)
        return Proof.BODY_VERIFIED if any(_matches(key, signature, message) for key in self.keys) else Proof.WRONG


def _message(lines: Sequence[str], body: bytes) -> bytes:
    return "\n".join((*lines, hashlib.sha256(body).hexdigest())).encode()


def _matches(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _read_key(item: Any) -> Ed25519PublicKey | None:
    """Return the key of a JWK; None for another kind."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not isinstance(item, dict) or item.get("kty", "OKP") != "OKP" or item.get("crv", "Ed25519") != "Ed25519":
        return None
    x = item.get("x")
    if not isinstance(x, str):
        return None
    try:
        raw = base64.b64decode(x.encode("ascii") + b"=" * (-len(x) % 4), altchars=b"-_", validate=True)
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        return None
