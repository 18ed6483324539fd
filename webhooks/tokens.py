"""Tokens derived from the broker's secret: proof of a callback's origin, and of a public URL's owner."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from webhooks.signatures.base import Proof

_NONCE: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class CallbackTokens:
    """Capability tokens; each is valid for the callbacks of one attempt of one task."""

    secret: bytes = field(repr=False)
    old_secrets: tuple[bytes, ...] = field(default=(), repr=False)
    """Secrets before this one: tokens that were made with them are still valid."""

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """All secrets, the current one first."""
        return self.secret, *self.old_secrets

    def token(self, task: str, attempt: int) -> str:
        """Return the token: 128 bits in 32 hex digits."""
        return _make_token(self._keyed[0], task, attempt)

    @cached_property
    def _keyed(self) -> tuple[hmac.HMAC, ...]:
        """One for each secret: a copy is made in half of the time that OpenSSL takes to begin."""
        return tuple(hmac.new(secret, digestmod=hashlib.sha256) for secret in self.secrets)

    def verify(self, task: str, attempt: int, token: str) -> Proof:
        offered = token.encode("utf-8", "replace")
        # no early exit: the duration reveals nothing
        matches = [hmac.compare_digest(_make_token(keyed, task, attempt).encode(), offered) for keyed in self._keyed]
        return Proof.BODY_VERIFIED if any(matches) else Proof.WRONG


def _make_token(keyed: hmac.HMAC, task: str, attempt: int) -> str:
    hashed = keyed.copy()
    hashed.update(f"callback.v1:{task}:{attempt}".encode("utf-8", "replace"))
    return hashed.hexdigest()[:32]


@dataclass(frozen=True)
class ChallengeResponse:
    """Challenge and response that show whether a URL leads to this broker.

    Only a holder of the secret can answer a nonce. An intermediary can forward both challenge and answer, which is
    exactly the function of a tunnel.
    """

    secret: bytes = field(repr=False)

    def answer(self, nonce: str) -> str | None:
        """Return the answer; None unless `nonce` has the form of one, so that no other text is ever signed."""
        if not _NONCE.fullmatch(nonce):
            return None
        return hmac.new(self.secret, f"presence.v1:{nonce}".encode(), hashlib.sha256).hexdigest()[:32]

    def is_valid(self, nonce: str, answer: object) -> bool:
        expected = self.answer(nonce)
        if expected is None or not isinstance(answer, str):
            return False
        return hmac.compare_digest(expected.encode(), answer.encode("utf-8", "replace"))


def new_nonce() -> str:
    """Return 128 random bits in 32 hex digits."""
    return secrets.token_hex(16)
