"""Standard Webhooks (version 1): signing what we send, and proving what was sent to us. Pure.

What is signed is `id.timestamp.body`; the signature header lists one signature per secret, so that a new secret can be
given to one side before the old one is taken from the other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from webhooks.proofs import TOLERANCE_SECONDS, Proof

PREFIX: Final = "whsec_"
KEY_BYTES: Final = range(24, 65)
"""What the standard allows."""
MOST_SIGNATURES: Final = 5
_HEADERS: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")
_ID: Final = re.compile(r"[\x21-\x7e]{1,255}")
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")


def read_secret(text: str) -> bytes:
    """The key in `whsec_<base64>`. Raises ValueError, naming none of it."""
    if not text.startswith(PREFIX):
        raise ValueError(f"it does not begin with {PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(PREFIX).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError(f"what follows {PREFIX} is not base64") from None
    if len(key) not in KEY_BYTES:
        raise ValueError(f"its key has {len(key)} bytes, not {KEY_BYTES[0]} to {KEY_BYTES[-1]}")
    return key


def write_secret(key: bytes) -> str:
    """A key as receivers' libraries take it."""
    return PREFIX + base64.b64encode(key).decode()


def derived_key(secret: bytes) -> bytes:
    """A key of our own for callers who chose none: the same in every process that has the same secret."""
    return hmac.new(secret, b"standard-webhooks.v1", hashlib.sha256).digest()


@dataclass(frozen=True)
class StandardSignature:
    """Every key signs; any one of them proves. required: whether an unsigned message is worthless."""

    keys: Sequence[bytes] = field(repr=False)
    required: bool = True

    def headers(self, message_id: str, at: float, body: bytes) -> dict[str, str]:
        """What goes along with a body. at: seconds since the epoch, when it is sent."""
        timestamp = str(int(at))
        signatures = [base64.b64encode(_mac(key, message_id, timestamp, body)).decode() for key in self.keys]
        signature = " ".join(f"v1,{one}" for one in signatures)
        return dict(zip(_HEADERS, (message_id, timestamp, signature), strict=True))

    def prove(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        """headers: lower-case names. ids: of no interest, the body itself is covered. Raises nothing, ever."""
        message_id, timestamp, offered = (headers.get(name) for name in _HEADERS)
        if message_id is None and timestamp is None and offered is None:
            return Proof.NONE
        if message_id is None or timestamp is None or offered is None:
            return Proof.WRONG
        if not _ID.fullmatch(message_id) or not _is_fresh(timestamp, now):
            return Proof.WRONG
        # all of them are compared: how long it takes tells nothing
        right = [
            hmac.compare_digest(_mac(key, message_id, timestamp, body), mac)
            for mac in _offered(offered)
            for key in self.keys
        ]
        return Proof.BODY if any(right) else Proof.WRONG


def _mac(key: bytes, message_id: str, timestamp: str, body: bytes) -> bytes:
    return hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()


def _is_fresh(timestamp: str, now: float) -> bool:
    return _TIMESTAMP.fullmatch(timestamp) is not None and abs(now - int(timestamp)) <= TOLERANCE_SECONDS


def _offered(header: str) -> list[bytes]:
    """The macs of our version among the first few; what is none counts as an empty one, which is never right."""
    parts = [part.partition(",") for part in header.split(" ", MOST_SIGNATURES)[:MOST_SIGNATURES]]
    return [_unbase64(value) for version, _, value in parts if version == "v1"]


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return b""
