"""Passwords: argon2id in two threads, so that many logins at once cannot take the machine."""

from __future__ import annotations

import base64
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

_ARGON2ID: Final = argon2.PasswordHasher(
    time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16, type=argon2.Type.ID
)


def _encoded(number: int, size: int) -> str:
    return base64.b64encode(bytes([number]) * size).decode().rstrip("=")


_NO_PASSWORD: Final = f"$argon2id$v=19$m=19456,t=2,p=1${_encoded(1, 16)}${_encoded(2, 32)}"
"""Verified in place of an unknown user's hash: costs the same, and no password is known that fits."""


@dataclass(frozen=True, kw_only=True)
class PasswordHasher:
    """Hashes and verifies passwords outside of the event loop."""

    metrics: Metrics
    limiter: CapacityLimiter = field(default_factory=partial(CapacityLimiter, HASH_THREADS))

    async def hash(self, password: str) -> str:
        """Return the hash of a new password, with its parameters and salt."""
        return await self._run(partial(_ARGON2ID.hash, _to_bytes(password)))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Return whether a password fits a hash. None, for an unknown user, takes as long as a wrong password."""
        is_right = await self._run(partial(_verify, password_hash or _NO_PASSWORD, _to_bytes(password)))
        return is_right and password_hash is not None

    def needs_rehash(self, password_hash: str) -> bool:
        """Return whether a hash was made with other parameters than today's."""
        return _ARGON2ID.check_needs_rehash(password_hash)

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


def is_too_long(password: str) -> bool:
    """Return whether a text cannot be a password; it is never hashed."""
    return len(_to_bytes(password)) > MAX_BYTES


def _to_bytes(password: str) -> bytes:
    """Return the same bytes for the same characters, however a keyboard composes them."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def _verify(password_hash: str, password: bytes) -> bool:
    try:
        return _ARGON2ID.verify(password_hash, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
