"""The Retry-After header of HTTP (RFC 9110, 10.2.3)."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

_SECONDS: Final = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,9})?")  # fractions are not in the RFC, but are sent


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds to wait, 0 or more; None for a missing or unreadable value. now: seconds since the epoch."""
    if not value:
        return None
    text = value.strip()[:64]
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
