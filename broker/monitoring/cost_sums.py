"""Sums of what attempts cost, read day by day: those of days that are over are kept for some minutes.

There may be millions of attempts, and hardly one changes after its day: by a late result, or if its owner is deleted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from broker.clock import Clock
from storage.ledger import SECONDS_PER_DAY, CostSum, Group, Ledger

KEPT_SECONDS: Final = 600.0
OPEN_DAYS: Final = 2
"""The newest days, whose attempts may still be running: these are read each time."""


@dataclass(kw_only=True)
class CostSums:
    """Costs by day, model, provider or user."""

    ledger: Ledger
    clock: Clock
    _kept: dict[tuple[Group, int], tuple[float, list[CostSum]]] = field(default_factory=dict)
    """By group and day: when it was read, on the monotonic clock."""
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def read(self, by: Group, *, since_day: int) -> list[CostSum]:
        """Return the sums since a day: of each day, or of several days together."""
        async with self._reading:
            today = int(self.clock.now() // SECONDS_PER_DAY)
            live = await self.ledger.first_live_day()
            first = max(since_day, today if live is None else min(live, today))
            sums = await self.ledger.sum_costs(by, range(since_day, first))
            for day in range(first, today - OPEN_DAYS + 1):
                sums += await self._read_day(by, day)
            newest = max(first, today - OPEN_DAYS + 1)
            return sums + await self.ledger.sum_costs(by, range(newest, max(newest, today) + OPEN_DAYS))

    async def _read_day(self, by: Group, day: int) -> list[CostSum]:
        now = self.clock.monotonic()
        self._kept = {key: kept for key, kept in self._kept.items() if now < kept[0] + KEPT_SECONDS}
        if (by, day) not in self._kept:
            self._kept[by, day] = now, await self.ledger.sum_costs(by, range(day, day + 1))
        return self._kept[by, day][1]
