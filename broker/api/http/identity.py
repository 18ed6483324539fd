"""Headers that identify a repeated request."""

from __future__ import annotations

import re
from typing import Final

from starlette.requests import Request

from broker.errors import ApiError

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


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
