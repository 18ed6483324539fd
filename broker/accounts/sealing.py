"""Sealing of secrets in the database: AES-256-GCM, with keys derived from SECRET_KEY.

A sealed text opens only where it was sealed: its context (table, row, owner, …) is authenticated with it, so that a
row that was changed, or exchanged with another one, does not open. It says by which key it was sealed, so that several
are known while SECRET_KEY is replaced.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES: Final = 12
_PURPOSE: Final = b"provider-keys.v1"


class SealBroken(Exception):
    """A sealed text does not open: it was changed or moved, or its key is not known. The message holds no secret."""


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A sealed text."""

    text: str
    """Nonce, ciphertext and tag, in base64."""
    key_id: str
    """Of the key that sealed it."""


@dataclass(frozen=True, kw_only=True)
class SealingKey:
    """A key derived from one SECRET_KEY."""

    id: str
    """Reveals nothing of it."""
    cipher: AESGCM = field(repr=False)

    @classmethod
    def derive_from(cls, secret: bytes) -> SealingKey:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(secret)
        return cls(id=hashlib.sha256(b"id of " + _PURPOSE + key).hexdigest()[:8], cipher=AESGCM(key))


@dataclass(frozen=True, kw_only=True)
class KeyRing:
    """The key that seals, and all keys that open. They are derived when they are first needed."""

    secret: bytes = field(repr=False)
    old: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def from_secrets(cls, current: bytes, old: Iterable[bytes] = ()) -> KeyRing:
        """current: the SECRET_KEY in effect. old: those before it."""
        return cls(secret=current, old=tuple(old))

    @cached_property
    def current(self) -> SealingKey:
        return SealingKey.derive_from(self.secret)

    @cached_property
    def by_id(self) -> Mapping[str, SealingKey]:
        return {key.id: key for key in (*map(SealingKey.derive_from, self.old), self.current)}

    def seal(self, secret: SecretStr, *context: str) -> Sealed:
        """Seal a secret for one place. context: what must be the same when it is opened."""
        nonce, key = os.urandom(NONCE_BYTES), self.current
        box = key.cipher.encrypt(nonce, secret.get_secret_value().encode(), _associated_data(key.id, context))
        return Sealed(text=base64.b64encode(nonce + box).decode(), key_id=key.id)

    def open(self, sealed: Sealed, *context: str) -> SecretStr:
        """Return the secret. Raises `SealBroken`."""
        from cryptography.exceptions import InvalidTag

        key = self.by_id.get(sealed.key_id)
        if key is None:
            raise SealBroken("it is sealed by a key that is not known")
        box = _decode_canonical(sealed.text)
        try:
            plain = key.cipher.decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], _associated_data(key.id, context))
        except (InvalidTag, ValueError):  # ValueError: it is too short to be one
            raise SealBroken("it was changed, or does not belong to this row") from None
        return SecretStr(plain.decode())


def _associated_data(key_id: str, context: Iterable[str]) -> bytes:
    return json.dumps([key_id, *context]).encode()


def _decode_canonical(text: str) -> bytes:
    """Decode base64. Raises `SealBroken` for any spelling but the one that `seal` wrote."""
    try:
        box = base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        raise SealBroken("it is not base64") from None
    if base64.b64encode(box).decode() != text:
        raise SealBroken("it is not canonical base64")
    return box
