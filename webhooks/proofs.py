"""What shows that a callback comes from where it says: a token in its address, a signature over its ids.

And what shows that an address, called from outside, leads to us.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

TOLERANCE_SECONDS = 300
_NONCE: Final = re.compile(r"[0-9a-f]{32}")


class Proof(StrEnum):
    """NONE: nothing offered. BODY: the body is proved. SENDER: somebody with the key called, the body may be changed.
    WRONG: offered, and not right."""

    NONE = "none"
    BODY = "body"
    SENDER = "sender"
    WRONG = "wrong"


@dataclass(frozen=True)
class CallbackTokens:
    """Capabilities: each is good for the callbacks of one attempt of one task, and for nothing else."""

    secret: bytes

    def token(self, task: str, attempt: int) -> str:
        """128 bits in 32 hex digits."""
        message = f"callback.v1:{task}:{attempt}".encode("utf-8", "replace")
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:32]

    def prove(self, task: str, attempt: int, token: str) -> Proof:
        expected = self.token(task, attempt)
        right = hmac.compare_digest(expected.encode(), token.encode("utf-8", "replace"))
        return Proof.BODY if right else Proof.WRONG


@dataclass(frozen=True)
class Presence:
    """Shows that an address leads to us: only who has our secret knows the answer to a nonce.

    Whoever passes the question on can pass the answer on, too; that is what a tunnel is.
    """

    secret: bytes

    def answer(self, nonce: str) -> str | None:
        """None for what is no nonce: nothing else is ever signed for a stranger."""
        if not _NONCE.fullmatch(nonce):
            return None
        return hmac.new(self.secret, f"presence.v1:{nonce}".encode(), hashlib.sha256).hexdigest()[:32]

    def shown(self, nonce: str, answer: object) -> bool:
        expected = self.answer(nonce)
        return expected is not None and isinstance(answer, str) and hmac.compare_digest(expected, _ascii(answer))


def new_nonce() -> str:
    """128 bits that nobody has asked with before."""
    return secrets.token_hex(16)


def _ascii(text: str) -> str:
    return text if text.isascii() else ""


class Signature(Protocol):
    """How one provider signs. `required` makes an unsigned callback without a token worthless."""

    @property
    def required(self) -> bool: ...

    def prove(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        """headers: lower-case names. ids: what the body names, most telling first. now: seconds since the epoch."""
        ...


@dataclass(frozen=True)
class Unsigned:
    """For providers that sign nothing, or whose key we were not given."""

    required: bool = False

    def prove(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        return Proof.NONE


@dataclass(frozen=True)
class KieSignature:
    """kie.ai, Webhook Verification: `X-Webhook-Signature: base64(HMAC-SHA256(key, taskId + "." + timestamp))`.

    The body is not covered, so a right one proves the sender and not the result.
    """

    key: bytes
    required: bool = True

    def prove(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        offered, timestamp = headers.get("x-webhook-signature"), headers.get("x-webhook-timestamp")
        if offered is None and timestamp is None:
            return Proof.NONE
        if not _fresh(timestamp, now):
            return Proof.WRONG
        signature = _unbase64(offered or "")
        right = [hmac.compare_digest(self._sign(i, str(timestamp)), signature) for i in ids]
        return Proof.SENDER if any(right) else Proof.WRONG

    def _sign(self, job_id: str, timestamp: str) -> bytes:
        message = f"{job_id}.{timestamp}".encode("utf-8", "replace")
        return hmac.new(self.key, message, hashlib.sha256).digest()


def _fresh(timestamp: str | None, now: float) -> bool:
    """Whole seconds in plain digits, not older and not more in the future than five minutes."""
    if timestamp is None or not re.fullmatch(r"[0-9]{1,12}", timestamp):
        return False
    return abs(now - int(timestamp)) <= TOLERANCE_SECONDS


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return b""
