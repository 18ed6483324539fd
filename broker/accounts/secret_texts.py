"""Secrets that the broker hands out: 256 random bits after a prefix that says what they are, stored as a digest."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final, Literal

SecretUse = Literal["api_key", "cookie", "device", "access", "refresh"]

PREFIXES: Final[dict[SecretUse, str]] = {
    "api_key": "nbk_",
    "cookie": "nbs_",
    "device": "nbd_",
    "access": "nba_",
    "refresh": "nbr_",
}
MAX_SECRET_CHARS: Final = 128
"""Longer texts are not looked up."""


def new_secret(use: SecretUse) -> str:
    return f"{PREFIXES[use]}{secrets.token_urlsafe(32)}"


def has_use(text: str, use: SecretUse) -> bool:
    """Return whether a text looks like a secret of this use."""
    return text.startswith(PREFIXES[use]) and len(text) <= MAX_SECRET_CHARS


def digest_of(secret: str) -> str:
    """Return SHA-256 in hex. A slow hash would protect nothing: the secret is random."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
