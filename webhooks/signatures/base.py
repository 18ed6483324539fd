"""The contract of a signature scheme, and what schemes share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

MAX_CLOCK_SKEW_SECONDS: Final = 300
"""How far a signed timestamp may lie from the verifier's clock, in either direction."""

_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")


class Proof(StrEnum):
    """The proof that a token or signature gives about a callback."""

    NONE = "none"
    """None was offered."""
    BODY_VERIFIED = "body"
    """The body comes from the holder of the key, unchanged."""
    SENDER_VERIFIED = "sender"
    """The caller holds the key, but the body is not covered and may have been changed."""
    WRONG = "wrong"
    """One was offered and is not valid."""


class Signature(Protocol):
    """Verifier of one provider's callbacks."""

    @property
    def required(self) -> bool:
        """True if an unsigned callback without a token must be rejected."""

    def verify(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        """Return what the headers prove; never raises.

        headers: lower-case names. ids: job ids found in the body, most specific first. now: seconds since the epoch.
        """


@dataclass(frozen=True)
class Unsigned:
    """Verifier for providers that do not sign, or whose key is not configured."""

    required: bool = False

    def verify(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        return Proof.NONE


def is_fresh(timestamp: str | None, now: float) -> bool:
    """Return True for whole seconds in plain digits within `MAX_CLOCK_SKEW_SECONDS` of `now`."""
    if timestamp is None or not _TIMESTAMP.fullmatch(timestamp):
        return False
    return abs(now - int(timestamp)) <= MAX_CLOCK_SKEW_SECONDS
