"""The rate limit of callers: orders per minute."""

from __future__ import annotations

from collections import OrderedDict, deque

from broker.clock import Clock
from broker.errors import Refusal


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
