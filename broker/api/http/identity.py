"""Headers that identify a request, or a repeated one."""

from __future__ import annotations

import re
import secrets
from typing import Final

from starlette.requests import Request

from broker.errors import ApiError

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_ID_CHARACTERS: Final = 16
_IDS_AT_ONCE: Final = 256


class RequestIds:
    """Ids of requests."""

    def __init__(self) -> None:
        self._unused: list[bytes] = []

    def choose(self, given: bytes | None) -> bytes:
        """Return the id that a client or proxy gave, if it is one plain token, or a new one."""
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        if not self._unused:  # many at once: a call of the kernel costs as much as the rest of a ready response
            text = secrets.token_hex(_ID_CHARACTERS // 2 * _IDS_AT_ONCE).encode()
            self._unused = [text[start : start + _ID_CHARACTERS] for start in range(0, len(text), _ID_CHARACTERS)]
        return self._unused.pop()


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key. Raises `ApiError` for one that is not a plain token."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise ApiError(
            "invalid_request", "Idempotency-Key must be 1 to 255 visible ASCII characters.", field="Idempotency-Key"
        )
    return keys[0]


def retry_count(request: Request) -> int | None:
    """Return how often a Stainless SDK has already sent this request; None for other clients."""
    count = request.headers.get("x-stainless-retry-count", "")
    return int(count) if re.fullmatch(r"[0-9]{1,3}", count) else None
