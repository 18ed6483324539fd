"""A JSON Web Token as signature, RS256, with keys that the sender publishes as a JWK set (RFC 7515, 7517, 7519).

Google sends one in the signature header of Standard Webhooks. What it says of the body is not documented, so it proves
the sender, not the body.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from webhooks.signatures.base import MAX_CLOCK_SKEW_SECONDS, Proof, is_fresh

if TYPE_CHECKING:
    import jwt

SIGNATURE_HEADER: Final = "webhook-signature"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
MAX_TOKEN_CHARACTERS: Final = 16_384
MAX_KEYS: Final = 32
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_ALGORITHM: Final = "RS256"


def is_jwt(headers: Mapping[str, str]) -> bool:
    """Return True if the signature header has a token, and not a list of digests."""
    offered = headers.get(SIGNATURE_HEADER, "")
    return len(offered) <= MAX_TOKEN_CHARACTERS and _TOKEN.fullmatch(offered) is not None


def _is_canonical(token: str) -> bool:
    """Return True if each part is base64url as an encoder writes it: the last digit has unused bits."""
    parts = [part.encode() for part in token.split(".")]
    try:
        return all(
            base64.urlsafe_b64encode(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))).rstrip(b"=") == part
            for part in parts
        )
    except ValueError:
        return False


def read_keys(document: Any) -> Mapping[str, jwt.PyJWK]:
    """Return the RSA keys of a JWK set by their ids; others are left out. Raises ValueError for anything else."""
    import jwt

    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is not a JWK set")
    keys = {}
    for item in listed[:MAX_KEYS]:
        if isinstance(item, dict) and item.get("kty") == "RSA" and isinstance(item.get("kid"), str):
            try:
                keys[item["kid"]] = jwt.PyJWK(item, algorithm=_ALGORITHM)
            except (jwt.PyJWTError, ValueError, TypeError):
                continue
    return keys


@dataclass(frozen=True, kw_only=True)
class Rs256Jwt:
    """Verifier with the published keys."""

    keys: Mapping[str, jwt.PyJWK] = field(repr=False)
    """By key id."""
    required: bool = False

    def verify(self, headers: Mapping[str, str], body: bytes, ids: Sequence[str], now: float) -> Proof:
        """Return what the headers prove. The token must be signed with RS256, and neither expired nor old."""
        import jwt

        offered = headers.get(SIGNATURE_HEADER)
        if offered is None:
            return Proof.NONE
        if not is_jwt(headers) or not _is_canonical(offered) or not is_fresh(headers.get(TIMESTAMP_HEADER), now):
            return Proof.WRONG
        try:
            key = self.keys[str(jwt.get_unverified_header(offered).get("kid"))]
            claims = jwt.decode(
                offered,
                key,
                algorithms=[_ALGORITHM],
                # the moments are compared with our clock below, and the audience is not documented
                options={"verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False},
            )
        except (jwt.PyJWTError, KeyError, ValueError):
            return Proof.WRONG
        return Proof.SENDER_VERIFIED if _is_in_time(claims, now) else Proof.WRONG


def _is_in_time(claims: Mapping[str, Any], now: float) -> bool:
    """Return whether the token has begun and not ended; without these moments the header's time counts alone."""
    begin, end = claims.get("nbf", claims.get("iat", now)), claims.get("exp", now)
    if not isinstance(begin, int | float) or not isinstance(end, int | float):
        return False
    return begin - MAX_CLOCK_SKEW_SECONDS <= now <= end + MAX_CLOCK_SKEW_SECONDS
