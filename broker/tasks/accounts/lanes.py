"""The queues of accounts: which of the many of users a poll looks at, and which have orders but no capacity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.clock import Clock
from storage.task_queue import TaskQueue

MAX_LANES: Final = 64
"""Read by one poll; the next one goes on behind them."""
PAUSE_SECONDS: Final = 0.25
"""An account without capacity is looked at again after it, at the latest."""


@dataclass(kw_only=True)
class Lanes:
    """The accounts of users with queued orders, in turn, and all accounts that were found without capacity.

    Those of users rest; those of the operator are looked at when a job ends, too.
    """

    clock: Clock
    queue: TaskQueue
    max_lanes: int = MAX_LANES
    has_more: bool = False
    """The last reading left some out."""
    _after: str = ""
    _last: str = ""
    _paused_until: dict[str, float] = field(default_factory=dict)
    _full_until: dict[str, float] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)

    def take_turn(self) -> None:
        """Begin a poll: let `read_due` go on behind the accounts that it returned last."""
        self._after = self._last
        self._waiting.clear()

    async def read_due(self) -> Mapping[str, float]:
        """Return the accounts of this turn, and when the first order of each is to be submitted."""
        now = self.clock.now()
        # a pause that seems longer was begun before the clock was set back
        rest = {name: until for name, until in self._paused_until.items() if now < until <= now + PAUSE_SECONDS}
        lanes = await self.queue.list_own_lanes(after=self._after, now=now, limit=self.max_lanes)
        is_cut_off = len(lanes) == self.max_lanes
        self._paused_until, self._last = rest, list(lanes)[-1] if is_cut_off else ""
        self.has_more = is_cut_off or bool(self._after)
        return {name: max(due_at, rest.get(name, 0.0)) for name, due_at in lanes.items()}

    def pause(self, account: str, *, until: float) -> None:
        """Leave an account alone until a moment, or for a short time if that is far away."""
        self._paused_until[account] = min(until, self.clock.now() + PAUSE_SECONDS)

    def record_full(self, account: str, *, until: float) -> None:
        """Note that due orders of an account wait for capacity, which the worker of this process looks for again."""
        self._full_until[account] = min(until, self.clock.now() + PAUSE_SECONDS)

    def forget_full(self, account: str) -> None:
        """Note that an account has capacity."""
        self._full_until.pop(account, None)

    async def has_waiting(self, account: str) -> bool:
        """Return whether an order of an account may wait to be claimed: one that did is known until the next poll."""
        if account not in self._waiting and await self.queue.has_waiting(account, self.clock.now()):
            self._waiting.add(account)
        return account in self._waiting

    def keep_full(self, queued: Mapping[str, float]) -> None:
        """Forget which accounts are full but for those with due orders. queued: when the first order of each is due."""
        now = self.clock.now()
        kept = {name: until for name, until in self._full_until.items() if queued.get(name, math.inf) <= now}
        self._full_until = kept

    def is_full(self, account: str) -> bool:
        """Return whether orders of an account wait for capacity, so that one more makes no difference."""
        until = self._full_until.get(account)
        return until is not None and 0.0 < until - self.clock.now() <= PAUSE_SECONDS
