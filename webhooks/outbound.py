"""What a receiver's answer means for a webhook of ours: it arrived, it is not wanted, or it is tried again. Pure.

pending ──► delivered   2xx
  │   ├──► gone         410: the receiver is closed for good
  │   └──► failed       the ladder has no more rungs; kept, and can be sent anew
  └─ anything else: again, a rung later
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from storage.deliveries import Fate

LADDER: Final = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 36000.0)
"""Seconds between two tries: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h."""
JITTER: Final = 0.1
"""Up to so much of a pause is added: receivers that came back should not be met by everybody at once."""
LONGEST_WISH: Final = 3600.0
"""How much longer than its rung a receiver may ask us to wait."""

_WISHING: Final = frozenset({429, 503})


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What came of one try. status: of the answer; None without one. trouble: why there was none."""

    status: int | None = None
    retry_after: str | None = None
    trouble: str | None = None


@dataclass(frozen=True, kw_only=True)
class Next:
    """due_at: of the next try; None if there is none."""

    fate: Fate
    due_at: float | None = None
    reason: str | None = None


def after(rung: int, heard: Heard, now: float, random: Callable[[], float]) -> Next:
    """What follows from a try. rung: how many there were on this ladder, this one included."""
    if heard.status is not None and 200 <= heard.status < 300:
        return Next(fate=Fate.DELIVERED)
    reason = _reason(heard)
    if heard.status == 410:
        return Next(fate=Fate.GONE, reason=reason)
    if rung > len(LADDER):
        return Next(fate=Fate.FAILED, reason=reason)
    pause = LADDER[rung - 1]
    wished = _wished(heard.retry_after, now) if heard.status in _WISHING else 0.0
    pause = max(pause * (1 + JITTER * random()), min(wished, pause + LONGEST_WISH))
    return Next(fate=Fate.PENDING, due_at=now + pause, reason=reason)


def _reason(heard: Heard) -> str:
    if heard.status is None:
        return heard.trouble or "no answer"
    if 300 <= heard.status < 400:
        return f"HTTP {heard.status}: redirects are not followed"
    return f"HTTP {heard.status}"


def _wished(text: str | None, now: float) -> float:
    """Seconds that a `Retry-After` asks for: a number, or a date; 0 for what is neither."""
    text = (text or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
