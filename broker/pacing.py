"""Pace: when a provider is left alone, and for how long; how much a caller may order per minute."""

from __future__ import annotations

from collections import OrderedDict, deque

from broker.clock import Clock
from broker.errors import Refusal
from broker.lifecycle import Rules, backoff
from broker.reports import Failed, Report

ACCOUNT_TROUBLES = frozenset({"provider_rate_limited", "provider_unavailable"})
UNKNOWN_IN_A_ROW = 5
BREAK_SECONDS = 30.0


def pause_after(report: Report | None, troubles: int, now: float, rules: Rules) -> float | None:
    """Until when nothing more is submitted to this provider; None = no trouble, the lane is clear.

    report: what `submit` answered, None if the outcome is unknown. troubles: submissions in a row that met trouble
    before this one. A refusal for rate or maintenance concerns the whole account, so it pauses everybody at once;
    single unknown outcomes do not, only a row of them: then the provider is down, and each further one may cost money.
    """
    if report is None:
        return now + BREAK_SECONDS if troubles + 1 >= UNKNOWN_IN_A_ROW else now
    if isinstance(report, Failed) and report.retryable and report.code in ACCOUNT_TROUBLES:
        return now + max(report.retry_in or 0.0, backoff(troubles, rules, most=rules.check_most))
    return None


class CallerPace:
    """At most `per_minute` orders per caller in any 60 seconds, counted in this process."""

    MOST_CALLERS = 10_000

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._taken: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, caller: str, count: int) -> None:
        """Raises `Refusal("rate_limited")` with the seconds to wait; then nothing is counted."""
        now = self._clock.now()
        taken = self._taken.setdefault(caller, deque())
        self._taken.move_to_end(caller)
        if len(self._taken) > self.MOST_CALLERS:
            self._taken.popitem(last=False)
        while taken and not now - 60.0 < taken[0] <= now:  # too old, or from before the clock was set back
            taken.popleft()
        if count > self._per_minute:
            raise Refusal("rate_limited", f"At most {self._per_minute} images can be ordered at once: order fewer.")
        if len(taken) + count > self._per_minute:
            wait = max(1.0, taken[0] + 60.0 - now) if taken else 60.0
            raise Refusal(
                "rate_limited",
                f"At most {self._per_minute} images can be ordered per minute (RATE_LIMIT_PER_MINUTE). "
                f"Try again in {wait:.0f} seconds.",
                retryable=True,
                retry_after=wait,
            )
        taken.extend([now] * count)
