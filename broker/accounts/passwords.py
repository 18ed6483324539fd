"""Passwords: argon2id in two threads, so that many logins at once cannot take the machine."""

from __future__ import annotations

import base64
import hmac
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import argon2
from anyio import CapacityLimiter, to_thread

from broker.errors import ApiError
from broker.metrics import Metrics

MIN_NEW_CHARS: Final = 8
MAX_BYTES: Final = 1024
HASH_THREADS: Final = 2

T = TypeVar("T")

ARGON2ID: Final = argon2.PasswordHasher(
    time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16, type=argon2.Type.ID
)
"""The minimum that OWASP recommends: about 35 ms of one core."""


@dataclass(frozen=True, kw_only=True)
class PasswordHasher:
    """Hashes and verifies passwords outside of the event loop."""

    metrics: Metrics
    argon2id: argon2.PasswordHasher = ARGON2ID
    limiter: CapacityLimiter = field(default_factory=partial(CapacityLimiter, HASH_THREADS))

    async def hash(self, password: str) -> str:
        """Return the hash of a new password, with its parameters and salt."""
        return await self._run(partial(self.argon2id.hash, _to_bytes(password)))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Return whether a password fits a hash. None, for an unknown user, takes as long as a wrong password."""
        is_right = await self._run(partial(self._verify, password_hash or self._unknown_hash, _to_bytes(password)))
        return is_right and password_hash is not None

    def needs_rehash(self, password_hash: str) -> bool:
        """Return whether a hash was made with other parameters than today's."""
        return self.argon2id.check_needs_rehash(password_hash)

    @property
    def _unknown_hash(self) -> str:
        """A hash with today's parameters that no known password fits."""
        costs = self.argon2id
        parameters = f"m={costs.memory_cost},t={costs.time_cost},p={costs.parallelism}"
        return f"$argon2id$v=19${parameters}${_encoded(1, costs.salt_len)}${_encoded(2, costs.hash_len)}"

    def _verify(self, password_hash: str, password: bytes) -> bool:
        try:
            return self.argon2id.verify(password_hash, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    async def _run(self, function: Callable[[], T]) -> T:
        self.metrics.password_hashes.inc()
        return await to_thread.run_sync(function, limiter=self.limiter)


def check_new_password(password: str, name: str) -> None:
    """Raise `ApiError` for a password that is too short, too long, or the user's own name."""
    if len(password) < MIN_NEW_CHARS or len(_to_bytes(password)) > MAX_BYTES:
        raise ApiError(
            "invalid_request",
            f"A password has at least {MIN_NEW_CHARS} characters and at most {MAX_BYTES} bytes.",
            field="password",
            message_key="password_length",
        )
    if password.strip().casefold() == name.casefold():
        raise ApiError(
            "invalid_request",
            "The password must not be the user name.",
            field="password",
            message_key="password_is_name",
        )


def check_changed_password(password: str, old: str) -> None:
    """Raise `ApiError` for a new password that is the present one, which others may know."""
    if hmac.compare_digest(_to_bytes(password), _to_bytes(old)):
        raise ApiError(
            "invalid_request",
            "The new password is the present one: choose another.",
            field="newPassword",
            message_key="password_unchanged",
        )


def is_too_long(password: str) -> bool:
    """Return whether a text cannot be a password; it is never hashed."""
    return len(_to_bytes(password)) > MAX_BYTES


def _to_bytes(password: str) -> bytes:
    """Return the same bytes for the same characters, however a keyboard composes them."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def _encoded(number: int, size: int) -> str:
    return base64.b64encode(bytes([number]) * size).decode().rstrip("=")
