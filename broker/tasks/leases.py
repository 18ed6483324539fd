"""Leases of a worker, and the clock they depend on."""

from __future__ import annotations

import asyncio
import math
import secrets
from dataclasses import dataclass, field
from typing import Final

from broker.clock import Clock
from broker.logs import log
from broker.tasks.running import RunningSteps
from storage.errors import StorageError
from storage.tasks import Lease, Tasks

MIN_GRACE_SECONDS: Final = 3.0
MAX_CLOCK_JUMP_SECONDS: Final = 120.0
DELETION_PAUSE_SECONDS: Final = 3600.0


@dataclass(kw_only=True)
class LeaseKeeper:
    """Renews the leases of running steps, and delays recovery after a database outage.

    During an outage no lease can be renewed. Before other workers recover submissions, the worker that holds a
    provider's response gets the time to store it.
    """

    clock: Clock
    tasks: Tasks
    running: RunningSteps
    lease_seconds: float
    _recover_from: float = field(init=False)

    def __post_init__(self) -> None:
        self._recover_from = self.clock.monotonic() + MIN_GRACE_SECONDS  # an outage may have just ended

    @property
    def may_recover(self) -> bool:
        """Return whether submissions without a lease may be recovered."""
        return self.clock.monotonic() >= self._recover_from

    def record_outage(self) -> None:
        self._recover_from = self.clock.monotonic() + max(self.lease_seconds, MIN_GRACE_SECONDS)

    def create_lease(self) -> Lease:
        return Lease(holder=secrets.token_hex(8), until=self.clock.now() + self.lease_seconds)

    async def keep(self) -> None:
        """Renew leases until canceled."""
        while True:
            await asyncio.sleep(self.lease_seconds / 3)
            try:
                await self.tasks.renew(self.running.held_leases(), self.clock.now() + self.lease_seconds)
            except StorageError as error:
                log.error("leases could not be renewed", action="store_unavailable", why=str(error))
                self.record_outage()


@dataclass(kw_only=True)
class ClockGuard:
    """Pauses deletion for an hour after the system clock was set."""

    clock: Clock
    _offset: float = field(init=False)
    """Between the time of day and the monotonic clock."""
    _paused_until: float = -math.inf

    def __post_init__(self) -> None:
        self._offset = self.clock.now() - self.clock.monotonic()

    @property
    def deletion_paused(self) -> bool:
        return self.clock.monotonic() < self._paused_until

    def check_clock(self) -> None:
        """Compare the two clocks."""
        jump = self.clock.now() - self.clock.monotonic() - self._offset
        self._offset += jump
        if abs(jump) > MAX_CLOCK_JUMP_SECONDS:
            log.warning("the clock was set: deletion pauses for an hour", action="clock_jumped", seconds=round(jump))
            self.pause_deletion()

    def pause_deletion(self) -> None:
        self._paused_until = self.clock.monotonic() + DELETION_PAUSE_SECONDS
